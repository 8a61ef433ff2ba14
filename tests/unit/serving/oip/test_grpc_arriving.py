"""Messages over gRPC that are small and would become large: refused before they are parsed."""

import asyncio
import socket
import threading
from unittest.mock import Mock

import grpc
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_serving.web.errors import RequestError

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from tritonclient.grpc import service_pb2

from cpt_serving.grpc_api import inference
from cpt_serving.grpc_api.arriving import memory_of

SERVICE = "/inference.GRPCInferenceService/"


@given(st.binary(max_size=300))
def test_any_bytes_have_a_bound(data):
    assert 2 * len(data) <= memory_of(data) <= 24 * len(data)


@given(st.lists(st.binary(max_size=2000), max_size=6), st.integers(0, 50), st.text(max_size=20))
def test_of_a_message_its_tensors_bytes_count_least(raw, elements, name):
    contents = service_pb2.InferTensorContents(int64_contents=range(elements))
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name=name, contents=contents)
    described = service_pb2.ModelInferRequest(model_name=name, inputs=[tensor])
    whole = service_pb2.ModelInferRequest(raw_input_contents=raw)
    whole.MergeFrom(described)
    data, size = whole.SerializeToString(), sum(map(len, raw))
    assert memory_of(data) == 2 * size + 24 * (len(data) - size)


def test_very_many_tensors_are_refused():
    with pytest.raises(RequestError, match="less than 4096 tensors"):
        memory_of(b"\x32\x00" * 5000)


def tensors(**fields):
    """Return a request with one tensor, in bytes."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", **fields)
    return service_pb2.ModelInferRequest(inputs=[tensor], raw_input_contents=[b"abcd"]).SerializeToString()


def parameters(number):
    return {str(index): service_pb2.InferParameter(bool_param=True) for index in range(number)}


GROUP = b"\x63\x64"  # of another message, and empty
LOOSE = b"\x60\x01"  # a number of another message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tensors(parameters=parameters(10_000)), "8192 fields and parameters"),
        (LOOSE + tensors(parameters=parameters(10_000)), "8192 fields and parameters"),
        (GROUP + tensors(parameters=parameters(10_000)), "a message of the protocol"),
        (tensors(shape=[1] * 2_000_000), "1048576 bytes besides the elements"),
        (b"\x2a\xa0\x9c\x01" + b"\x18\x01" * 10_000, "8192 fields and parameters"),
    ],
    ids=["parameters", "behind a number", "behind a group", "a long shape", "one number at a time"],
)
def test_descriptions_that_take_long_to_parse_are_refused(data, expected):
    with pytest.raises(RequestError, match=expected):
        memory_of(data)


def test_elements_of_tensors_may_be_many():
    contents = service_pb2.InferTensorContents(fp32_contents=[0.5] * 1_000_000)
    data = tensors(contents=contents, shape=[1_000_000])
    assert memory_of(data) == 2 * 4 + 24 * (len(data) - 4)


@pytest.mark.parametrize(("described", "heavy"), [(10, False), (20_000, True)])
def test_a_long_description_is_parsed_in_a_thread_whatever_bytes_it_has(monkeypatch, described, heavy):
    async def noted(_engine, call):
        return call.heavy

    monkeypatch.setattr(inference, "infer", noted)
    message = service_pb2.ModelInferRequest.FromString(tensors(shape=[1] * described))
    assert asyncio.run(inference.model_infer(Mock(), message)) is heavy


@pytest.fixture(scope="module")
def addresses(serve, shared_bundle):
    """Of gRPC and of the web."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with serve(shared_bundle, "--grpc-port", str(port), max_memory_bytes=4_000_000) as web:
        yield f"127.0.0.1:{port}", web


def status_of(address, name, data):
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(SERVICE + name)(data, timeout=60)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("ModelInfer", b"\x32\x00" * 70_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("ModelInfer", b"\x0a\x80\x80\x0c" + b"a" * 196_608, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("ModelInfer", b"\x0a\x01x\x3a\xe0\xc5\x08" + b"a" * 140_000, grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", b"\xff" * 100, grpc.StatusCode.INVALID_ARGUMENT),
        ("ModelInfer", b"\xff" * 100_000, grpc.StatusCode.INVALID_ARGUMENT),
        ("RepositoryIndex", b"\x0a\x80\x80\x0c" + b"a" * 196_608, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("ServerReady", b"", grpc.StatusCode.OK),
    ],
    ids=["many outputs", "a long name", "bytes of a tensor", "none", "a large none", "about models", "an empty one"],
)
def test_messages_end_as_they_should(addresses, name, data, code):
    assert status_of(addresses[0], name, data) is code


def test_memory_comes_back(addresses):
    data = service_pb2.ModelInferRequest(
        model_name="colours",
        inputs=[service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 600, 500, 3])],
        raw_input_contents=[bytes(900_000)],
    ).SerializeToString()
    codes = []

    def ask():
        codes.append(status_of(addresses[0], "ModelInfer", data))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    for _ in range(5):
        assert status_of(addresses[0], "ModelInfer", data) is grpc.StatusCode.OK
    assert httpx2.get(f"http://{addresses[1]}/health/live", trust_env=False).status_code == 200
