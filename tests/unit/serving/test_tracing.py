"""Spans, as OpenTelemetry's exporter in memory and a collector of the test's own receive them."""

import gzip
import json
import queue
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_serving import load_settings
from cpt_serving.app import app_of, create_service
from cpt_serving.telemetry.tracing import open_tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def tracing(bundle, **settings):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = create_service(load_settings(bundle=bundle.path, **settings))
    service.repository.load_now()
    with TestClient(app_of(service, tracer_provider=provider), raise_server_exceptions=False) as client:
        yield client, exporter


@pytest.fixture
def traced(shared_bundle):
    """A client of a server whose spans are kept, and the exporter that has them."""
    with tracing(shared_bundle, access_log=False) as client_and_exporter:
        yield client_and_exporter


def test_queue_and_inference_are_children_of_the_request(traced, png):
    client, exporter = traced
    client.post("/predict", content=png(), headers={"traceparent": PARENT})
    queue, inference, request = sorted(exporter.get_finished_spans(), key=lambda span: span.end_time)
    assert [span.name for span in (queue, inference, request)] == ["queue", "inference", "POST /predict"]
    assert request.kind is SpanKind.SERVER
    assert request.attributes["http.route"] == "/predict"
    assert request.attributes["http.response.status_code"] == 200
    assert f"{request.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    for child in (queue, inference):
        assert child.parent.span_id == request.context.span_id
        assert child.attributes["cpt.model.name"] == "colours"
        assert request.start_time <= child.start_time <= child.end_time <= request.end_time
    assert queue.end_time == inference.start_time
    assert inference.attributes["cpt.batch_rows"] == 1


def test_inference_by_the_protocol_is_traced_too(traced):
    client, exporter = traced
    row = {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    client.post("/v2/models/colours/infer", json={"inputs": [row]}, headers={"traceparent": PARENT})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans["POST /v2/models/{model}/infer"]
    assert spans["queue"].parent.span_id == spans["inference"].parent.span_id == request.context.span_id


def test_calls_over_grpc_are_traced_too(shared_bundle):
    triton = pytest.importorskip("tritonclient.grpc", reason="pip install '.[grpc]'")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    image = triton.InferInput("image", [2, 3, 8, 8], "FP32")
    image.set_data_from_numpy(np.zeros((2, 3, 8, 8), np.float32))
    with (
        tracing(shared_bundle, access_log=False, grpc_port=port) as (_, exporter),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        client.is_server_live()
        client.infer("colours", [image], headers={"traceparent": PARENT})
        with pytest.raises(triton.InferenceServerException):
            client.get_model_metadata("other")
        streamed = queue.Queue()
        client.start_stream(lambda result, error: streamed.put((result, error)))
        client.async_stream_infer("colours", [image])
        streamed.get(timeout=30)
        client.stop_stream()
    spans = exporter.get_finished_spans()
    calls = {span.name.rpartition("/")[2]: span for span in spans if span.kind is SpanKind.SERVER}
    assert list(calls) == ["ModelInfer", "ModelMetadata", "ModelStreamInfer"]  # and none of the liveness
    call = calls["ModelInfer"]
    assert f"{call.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{call.parent.span_id:016x}" == "00f067aa0ba902b7"
    codes = [span.attributes["rpc.response.status_code"] for span in calls.values()]
    assert codes == ["OK", "NOT_FOUND", "OK"]
    for name in ("ModelInfer", "ModelStreamInfer"):
        children = [span for span in spans if span.parent and span.parent.span_id == calls[name].context.span_id]
        assert [(span.name, span.attributes["cpt.rows"]) for span in children] == [("queue", 2), ("inference", 2)]


def test_the_access_log_names_the_span(shared_bundle, tmp_path):
    log = tmp_path / "access.log"
    with tracing(shared_bundle, access_log_file=log) as (client, exporter):
        client.get("/v2", headers={"traceparent": PARENT})
    (request,) = exporter.get_finished_spans()
    line = json.loads(log.read_text())
    assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert line["span_id"] == f"{request.context.span_id:016x}"


def test_a_request_without_a_trace_begins_one_and_its_children_belong_to_it(traced, png):
    client, exporter = traced
    client.post("/predict", files=[("file", png()), ("file", png())])
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["POST /predict"].parent is None
    assert spans["inference"].attributes["cpt.rows"] == 2


def test_health_and_metrics_are_not_traced_and_failures_are(traced):
    client, exporter = traced
    for path in ("/health/ready", "/v2/health/live", "/metrics"):
        client.get(path)
    assert exporter.get_finished_spans() == ()
    client.post("/predict", content=b"no image")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 400
    assert span.status.status_code is StatusCode.UNSET  # by the conventions, the client's fault is no error of ours


@pytest.mark.parametrize(
    ("tracing", "variables", "on"),
    [
        ("auto", {}, False),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, False),
        ("off", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        ("on", {}, True),
    ],
)
def test_it_is_on_where_the_variables_or_the_setting_say_so(shared_bundle, monkeypatch, tracing, variables, on):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider = open_tracing(load_settings(bundle=shared_bundle.path, tracing=tracing))
    assert (provider is not None) == on
    if provider is not None:
        assert provider.resource.attributes["service.name"] == "cpt-serve"
        provider.shutdown()


def test_without_the_extra_a_server_that_need_not_trace_warns_and_one_that_must_refuses(
    shared_bundle, monkeypatch, caplog
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    # another exporter has the package opentelemetry.exporter, too
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert open_tracing(load_settings(bundle=shared_bundle.path)) is None
    assert "pip install '.[otel]'" in caplog.text
    with pytest.raises(MissingExtraError, match="not installed"):
        open_tracing(load_settings(bundle=shared_bundle.path, tracing="on"))


def test_variables_that_contradict_each_other_are_an_error(shared_bundle, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    with pytest.raises(UsageError, match=r"OTEL_BSP_\*"):
        open_tracing(load_settings(bundle=shared_bundle.path, tracing="on"))


def test_a_server_that_does_not_trace_loads_no_exporter():
    code = "import cpt_serving.app, sys; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def collector():
    """A server that takes spans by OTLP over HTTP, with what it was sent."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_real_server_exports_its_spans_before_it_ends(
    tmp_path, shared_bundle, png, running_server, wait_until, get, collector, monkeypatch
):
    endpoint, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-images")
    with running_server(tmp_path, shared_bundle, drain_s=0) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        assert httpx2.post(f"{url}/predict", content=png(), trust_env=False).status_code == 200
        process.terminate()
        _, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr
    assert {path for path, _ in received} == {"/v1/traces"}
    resources = [resource for _, request in received for resource in request.resource_spans]
    names = {a.value.string_value for each in resources for a in each.resource.attributes if a.key == "service.name"}
    assert names == {"shop-images"}
    spans = {span.name for each in resources for scope in each.scope_spans for span in scope.spans}
    assert spans == {"queue", "inference", "POST /predict"}
