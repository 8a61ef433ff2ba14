"""The protocol over gRPC, asked by Triton's client and by one that is generated from the protocol's own definition."""

import contextlib
import socket
import subprocess
import sys
import threading

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpt_deploy
from cpt_deploy.errors import MissingExtraError, UsageError, how_to_install
from cpt_serving import load_settings, run

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from tritonclient.grpc import service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

ROWS = np.random.default_rng(11).uniform(-1, 1, (5, 3, 8, 8)).astype(np.float32)
INTEGERS = ROWS.astype(np.int32)
MODEL = "colours"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def addresses(serve, shared_bundle):
    """Of gRPC and of the web."""
    port = free_port()
    with serve(shared_bundle, "--grpc-port", str(port), max_body_bytes=1_000_000) as web:
        yield f"127.0.0.1:{port}", web


@pytest.fixture(scope="module")
def address(addresses):
    return addresses[0]


@pytest.fixture(scope="module")
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(reference_logits):
    return reference_logits(ROWS)


def image_input(values, datatype="FP32"):
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert (server.name, server.version) == ("cpt-deploy", cpt_deploy.__version__)
    for version in ("", "1"):
        metadata = client.get_model_metadata(MODEL, version)
        assert (metadata.versions, list(metadata.inputs[0].shape)) == (["1"], [-1, 3, 8, 8])
        config = client.get_model_config(MODEL, version).config
        assert (config.output[0].dims, config.backend) == ([3], "onnxruntime")


def test_infer(client, expected):
    result = client.infer(MODEL, [image_input(ROWS)], "1", request_id="r-1", timeout=60_000_000)
    assert np.array_equal(result.as_numpy("logits"), expected)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r-1", MODEL, "1")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_infer_compressed(client, expected, algorithm):
    rows = np.tile(ROWS, (20, 1, 1, 1))
    result = client.infer(MODEL, [image_input(rows)], compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("logits"), np.tile(expected, (20, 1)))


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP64", np.float64)])
def test_infer_from_other_floats(client, datatype, dtype):
    values = ROWS.astype(dtype)
    logits = client.infer(MODEL, [image_input(values, datatype)]).as_numpy("logits")
    same = client.infer(MODEL, [image_input(values.astype(np.float32))]).as_numpy("logits")
    assert np.array_equal(logits, same)


def test_classification_and_pixels(client):
    pixels = np.zeros((2, 5, 9, 3), np.uint8)
    pixels[..., 2] = 255
    outputs = [triton.InferRequestedOutput("logits", class_count=2)]
    classes = client.infer(MODEL, [image_input(pixels, "UINT8")], outputs=outputs).as_numpy("logits")
    assert classes.shape == (2, 2)
    assert all(row[0].decode().endswith(":2:blue") for row in classes)


def test_a_stream_goes_on_after_an_error(client, expected):
    answers, arrived = [], threading.Semaphore(0)

    def receive(result, error):
        answers.append((result, error))
        arrived.release()

    client.start_stream(receive)
    for model in (MODEL, "other", MODEL):
        client.async_stream_infer(model, [image_input(ROWS)])
    for _ in range(3):
        assert arrived.acquire(timeout=30)
    client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert "served model" in str(answers[1][1])
    assert np.array_equal(answers[2][0].as_numpy("logits"), expected)


def test_repository_and_statistics(client):
    (before,) = client.get_inference_statistics(MODEL).model_stats
    client.infer(MODEL, [image_input(ROWS)])
    for arguments in ((), (MODEL,), (MODEL, "1")):
        (after,) = client.get_inference_statistics(*arguments).model_stats
        assert after.inference_count - before.inference_count == 5
        assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    (entry,) = client.get_model_repository_index().models
    assert (entry.name, entry.version, entry.state) == (MODEL, "1", "READY")


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (lambda client: client.infer(MODEL, [image_input(ROWS[:, :, :4])]), "INVALID_ARGUMENT", "shape"),
        (
            lambda client: client.infer(MODEL, [image_input(ROWS.astype(np.int32), "INT32")]),
            "INVALID_ARGUMENT",
            "INT32",
        ),
        (
            lambda client: client.infer(MODEL, [image_input(ROWS)] * 2),
            "INVALID_ARGUMENT",
            r"the inputs \['image'\] once",
        ),
        (lambda client: client.infer("other", [image_input(ROWS)]), "NOT_FOUND", "served model"),
        (lambda client: client.get_model_metadata(MODEL, "7"), "NOT_FOUND", "served version"),
        (lambda client: client.infer(MODEL, [image_input(ROWS)], timeout=1), "DEADLINE_EXCEEDED", "deadline"),
        (
            lambda client: client.infer(MODEL, [image_input(np.zeros((257, 3, 8, 8), np.float32))]),
            "RESOURCE_EXHAUSTED",
            "at most 256",
        ),
        (
            lambda client: client.infer(MODEL, [image_input(np.zeros((2000, 3, 8, 8), np.float32))]),
            "RESOURCE_EXHAUSTED",
            "1000000",
        ),
        (lambda client: client.load_model(MODEL), "PERMISSION_DENIED", "none of its API keys has the scope admin"),
        (lambda client: client.get_trace_settings(), "UNIMPLEMENTED", "Expected a known method"),
    ],
)
def test_errors_have_their_codes(client, call, code, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        call(client)
    assert caught.value.status() == f"StatusCode.{code}"


@pytest.fixture(scope="module")
def call(address):
    """Sends a message as it is, past what the client would correct."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )


def typed_request(datatype, field, values, shape):
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="image", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return request


def test_calls_are_counted_with_the_other_requests(addresses, client):
    client.infer(MODEL, [image_input(ROWS)])
    with pytest.raises(InferenceServerException):
        client.infer("other", [image_input(ROWS)])
    metrics = httpx2.get(f"http://{addresses[1]}/metrics", trust_env=False).text
    for status in (200, 404):
        labels = f'method="gRPC",route="/inference.GRPCInferenceService/ModelInfer",status="{status}"'
        assert f"cpt_serve_requests_total{{{labels}}}" in metrics
    stats = httpx2.get(f"http://{addresses[1]}/stats", trust_env=False).json()
    assert 2 <= stats["requests"] == sum(stats["latency"]["counts"])
    assert stats["refused"] >= 1


def test_typed_contents_are_answered_with_typed_contents(call, expected, png):
    answer = call(typed_request("FP32", "fp32_contents", ROWS.ravel().tolist(), ROWS.shape))
    assert np.array_equal(np.float32(answer.outputs[0].contents.fp32_contents).reshape(5, 3), expected)
    for datatype, field, values, shape in (
        ("BYTES", "bytes_contents", [png("lime")], [1]),
        ("UINT8", "uint_contents", [0, 255, 0] * 64, [1, 8, 8, 3]),
    ):
        request = typed_request(datatype, field, values, shape)
        request.outputs.add(name="logits").parameters["classification"].int64_param = 1
        (text,) = call(request).outputs[0].contents.bytes_contents
        assert text.decode().endswith(":1:green")


def test_contradictory_contents_are_refused(call):
    import grpc

    two = typed_request("FP32", "fp32_contents", [0.0], [1, 3, 8, 8])
    two.raw_input_contents.append(bytes(768))
    many = typed_request("FP32", "fp32_contents", [], [1, 3, 8, 8])
    many.raw_input_contents.extend([bytes(768)] * 2)
    wrong = {
        "in the one": two,
        "2 in the one": many,
        "contents of the datatypes": typed_request("FP16", "fp32_contents", [1.0], [1, 3, 8, 8]),
        "the datatype 'INT8'": typed_request("INT8", "int_contents", [1], [1, 3, 8, 8]),
        "elements of FP32 in fp32_contents": typed_request("FP32", "fp64_contents", [1.0], [1, 3, 8, 8]),
        "768 bytes": typed_request("FP32", "fp32_contents", [1.0], [1, 3, 8, 8]),
        "0..255": typed_request("UINT8", "uint_contents", [256] * 192, [1, 8, 8, 3]),
        "inputs.0.shape.0: Expected at least 0": typed_request("FP32", "fp32_contents", [1.0], [-1, 3, 8, 8]),
        "the inputs ['image'] once, but got []": service_pb2.ModelInferRequest(model_name=MODEL),
    }
    for message, request in wrong.items():
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert message in caught.value.details()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_message_is_understood_or_refused(shared_bundle, data):
    """Whatever fits the messages' types ends in rows or in a 4xx."""
    from cpt_serving.adapters import adapter_of
    from cpt_serving.grpc_api.messages import infer_message, parse_message
    from cpt_serving.inference.memory import MemoryBudget
    from cpt_serving.inference.threads import Work
    from cpt_serving.web.errors import RequestError

    datatype = data.draw(st.sampled_from(["FP32", "FP64", "FP16", "UINT8", "BYTES", "INT8", "BOOL", "", "X"]))
    shapes = st.sampled_from([[1, 3, 8, 8], [1, 8, 8, 3], [1], [2, 1]])
    shape = data.draw(shapes | st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=5))
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name=data.draw(st.sampled_from(["image", ""])), datatype=datatype, shape=shape)
    request.raw_input_contents.extend(data.draw(st.lists(st.just(bytes(768)) | st.binary(max_size=20), max_size=2)))
    tensor.contents.fp32_contents.extend(data.draw(st.just([0.5] * 192) | st.lists(st.floats(width=32), max_size=3)))
    tensor.contents.bytes_contents.extend(data.draw(st.lists(st.binary(max_size=5), max_size=1)))
    tensor.contents.uint_contents.extend(data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)))
    request.parameters["timeout"].int64_param = data.draw(st.integers(-2, 2))
    for name in data.draw(st.lists(st.sampled_from(["logits", "other"]), max_size=1)):
        wish = request.outputs.add(name=name)
        kind, value = data.draw(
            st.tuples(st.just("int64_param"), st.integers(-1, 5))
            | st.tuples(st.just("string_param"), st.text(max_size=2))
            | st.tuples(st.just("double_param"), st.floats())
        )
        setattr(wish.parameters["classification"], kind, value)
    rows = None
    adapter = adapter_of(shared_bundle, load_settings(bundle=shared_bundle.path), MemoryBudget(1 << 20))
    with contextlib.suppress(RequestError):
        parsed = parse_message(request)
        assert 1 <= adapter.declared_rows(parsed) <= 256
        rows = adapter.decode(parsed, Work())["image"]
    if rows is not None:
        assert rows.dtype == np.float32
        assert rows.shape == (shape[0], 3, 8, 8)
        assert adapter.declared_rows(parsed) == adapter.rows({"image": rows})
        outputs = adapter.encode(parsed, {"logits": np.zeros((len(rows), 3), np.float32)})
        assert infer_message(shared_bundle, parsed.id, outputs).outputs[0].shape[0] == shape[0]


INDEPENDENT = """
import sys
import grpc
from open_inference.grpc import protocol, service
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = service.GRPCInferenceServiceStub(channel)
    assert stub.ServerLive(protocol.ServerLiveRequest()).live
    assert stub.ModelReady(protocol.ModelReadyRequest(name="colours")).ready
    tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[1, 3, 8, 8])
    tensor.contents.fp32_contents.extend([0.5] * 192)
    answer = stub.ModelInfer(protocol.ModelInferRequest(model_name="colours", inputs=[tensor]))
    print(answer.model_version, list(answer.outputs[0].shape))
"""


def test_an_independent_client(address):
    pytest.importorskip("open_inference.grpc", reason="pip install open-inference-grpc")
    # In a process of its own: two definitions of one protocol cannot be loaded together.
    command = [sys.executable, "-c", INDEPENDENT, address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1 [1, 3]\n"), done.stderr


def test_a_taken_port_and_a_missing_extra_are_one_line(shared_bundle, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"listen on 127.0.0.1:{port}"):
            run(load_settings(bundle=shared_bundle.path, port=0, grpc_port=port))
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingExtraError) as caught:
        run(load_settings(bundle=shared_bundle.path, port=0, grpc_port=port))
    assert caught.value.hint == how_to_install("grpc")
