"""gRPC's own services and the access log of calls, asked by the stubs of grpcio's packages and by Triton's client."""

import json
import signal
import socket

import numpy as np
import pytest

from cpt_serving.access.api_keys import add_key

grpc = pytest.importorskip("grpc", reason="pip install '.[grpc]'")
triton = pytest.importorskip("tritonclient.grpc", reason="pip install '.[grpc]'")
from google.protobuf.descriptor_pool import DescriptorPool  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # noqa: E402
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

SERVICE = "inference.GRPCInferenceService"
Status = health_pb2.HealthCheckResponse.ServingStatus


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start(running_server, shared_bundle, tmp_path, wait_until, get):
    """Starts a server with settings; gives its process, a channel to it, and what reads its access log."""
    opened = []

    def begin(**settings):
        port, log = free_port(), tmp_path / "access.log"
        context = running_server(tmp_path, shared_bundle, grpc_port=port, access_log_file=log, **settings)
        process, url = context.__enter__()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        opened.extend([(context.__exit__, (None, None, None)), (channel.close, ())])
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)

        def lines():
            process.terminate()
            process.wait(30)
            return [json.loads(line) for line in log.read_text().splitlines() if '"gRPC"' in line]

        return process, channel, lines

    yield begin
    for close, arguments in reversed(opened):
        close(*arguments)


def infer_request(rows=2, identity=""):
    request = service_pb2.ModelInferRequest(model_name="colours", id=identity)
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 3, 8, 8])
    request.raw_input_contents.append(np.zeros((rows, 3, 8, 8), np.float32).tobytes())
    return request


def test_each_call_is_a_line_of_the_access_log(start, tmp_path):
    key = add_key(tmp_path / "keys.txt", "shop", ["infer"])
    _, channel, lines = start(access_log=True, api_keys=tmp_path / "keys.txt", drain_s=0)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = [("x-api-key", key), ("x-request-id", "mine-1")]
    stub.ModelInfer(infer_request(), metadata=metadata)
    with pytest.raises(grpc.RpcError) as missing:
        stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="other"), metadata=metadata)
    assert ("x-request-id", "mine-1") in [tuple(each) for each in missing.value.trailing_metadata()]
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(infer_request())
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as unknown:
        stub.TraceSetting(service_pb2.TraceSettingRequest(), metadata=metadata)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    messages = iter([infer_request(1, "a"), infer_request(1, "two words"), infer_request(3, "b")])
    assert len(list(stub.ModelStreamInfer(messages, metadata=metadata))) == 3
    stub.ServerLive(service_pb2.ServerLiveRequest())  # quiet

    found = lines()
    assert all(line["method"] == "gRPC" and line["client"] == "127.0.0.1" for line in found)
    names = [(line["route"].removeprefix(f"/{SERVICE}/"), line["status"], line.get("key")) for line in found]
    assert names == [
        ("ModelInfer", 200, "shop"),
        ("ModelMetadata", 404, "shop"),
        ("ModelInfer", 401, None),
        ("unknown", 501, "shop"),
        *[("ModelStreamInfer", 200, "shop")] * 3,
    ]
    first = found[0]
    assert first["duration_ms"] >= first["queue_ms"] + first["inference_ms"] > 0
    assert (first["model"], first["version"], first["rows"]) == ("colours", "1", 2)
    ids = [line["request_id"] for line in found]
    assert ids[:2] == ["mine-1", "mine-1"]
    assert ids[3:5] + ids[6:] == ["mine-1", "a", "b"]
    assert len({ids[2], ids[5], "two words", "mine-1"}) == 4  # what could break a line is replaced


def test_probes_learn_whether_the_server_is_ready_and_streams_end_with_it(start):
    process, channel, _ = start(drain_s=1.5, shutdown_s=60)
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE, "liveness"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == Status.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert next(iter(stub.Watch(health_pb2.HealthCheckRequest(service="other")))).status == Status.SERVICE_UNKNOWN
    watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(watched).status == Status.SERVING
    database = ProtoReflectionDescriptorDatabase(channel)  # an idle stream of its own
    assert SERVICE in database.get_services()
    process.send_signal(signal.SIGTERM)
    assert next(watched).status == Status.NOT_SERVING
    assert stub.Check(health_pb2.HealthCheckRequest(service="liveness")).status == Status.SERVING
    assert list(watched) == []
    # Long before the grace of a minute.
    assert process.wait(30) == 0


def test_reflection_describes_the_services_to_those_who_may_ask(start, tmp_path):
    key = add_key(tmp_path / "keys.txt", "shop", ["infer"])
    _, channel, _ = start(api_keys=tmp_path / "keys.txt")
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == Status.SERVING
    with pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    class WithKey(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, continuation, details, request_iterator):
            return continuation(details._replace(metadata=[("x-api-key", key)]), request_iterator)

    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
    assert set(database.get_services()) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    described = DescriptorPool(database).FindServiceByName(SERVICE)
    ours = service_pb2.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]]
    assert {method.name for method in described.methods} == {method.name for method in ours.methods}
