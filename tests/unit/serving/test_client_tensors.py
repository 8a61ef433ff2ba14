"""The client's binary tensors against bytes written out by hand from the protocol, and against the real server."""

import asyncio
import json
import struct

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt_deploy.errors import UsageError
from cpt_serving import AsyncPredictClient, PredictClient
from cpt_serving.client.tensors import DATATYPES, HEADER_LENGTH, decode_answer, encode_request


def test_a_request_is_json_and_then_little_endian_elements():
    values = np.array([[1.5, -2.0]], ">f4")
    body, headers = encode_request("x", values, parameters={"timeout": 5})
    size = int(headers[HEADER_LENGTH])
    assert json.loads(body[:size]) == {
        "parameters": {"timeout": 5, "binary_data_output": True},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
    }
    assert body[size:] == struct.pack("<ff", 1.5, -2.0)


def test_an_answer_may_mix_json_and_bytes():
    head = json.dumps(
        {
            "model_name": "m",
            "outputs": [
                {"name": "a", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
                {"name": "b", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]},
                {"name": "c", "datatype": "UINT8", "shape": [1, 1], "parameters": {"binary_data_size": 1}},
            ],
        }
    ).encode()
    _, outputs = decode_answer(head + struct.pack("<qqB", -1, 2, 255), str(len(head)))
    assert outputs["a"].tolist() == [-1, 2]
    assert outputs["b"].tolist() == [[0.5, 1.0]]
    assert outputs["c"].tolist() == [[255]]


@given(hnp.arrays(st.sampled_from(list(DATATYPES.values())), hnp.array_shapes(min_dims=0, min_side=0)))
def test_what_is_encoded_can_be_decoded(values):
    body, headers = encode_request("x", values)
    size = int(headers[HEADER_LENGTH])
    head = json.loads(body[:size])
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    _, outputs = decode_answer(answer + body[size:], str(len(answer)))
    assert outputs["x"].dtype == values.dtype
    np.testing.assert_array_equal(outputs["x"], values)


@given(st.binary(max_size=60), st.none() | st.integers(-2, 80).map(str) | st.text(max_size=3))
def test_bytes_of_another_kind_are_a_value_error(body, length):
    with pytest.raises(ValueError):  # noqa: PT011 — the parser that finds out has the words
        decode_answer(body, length)


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        [1],
        [{"name": "a", "datatype": "BYTES", "shape": [1], "data": ["x"]}],
        [{"name": "a", "datatype": "FP32", "shape": [3], "data": [1, 2]}],
        [{"name": "a", "datatype": "FP32", "shape": [1]}],
        [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}],
    ],
    ids=str,
)
def test_outputs_of_another_form_are_a_value_error(outputs):
    with pytest.raises(ValueError):  # noqa: PT011 — the parser that finds out has the words
        decode_answer(json.dumps({"outputs": outputs}).encode(), None)


def test_text_has_no_binary_form():
    with pytest.raises(ValueError, match="numbers"):
        encode_request("x", np.array(["a"]))


@pytest.fixture
def transport(client):
    """The real app as the client's network; its own test client has started it."""
    client.get("/health/ready")
    handle = client._transport

    class Through(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
        def handle_request(self, request):
            response = handle.handle_request(request)
            return httpx2.Response(response.status_code, headers=response.headers, content=response.read())

        async def handle_async_request(self, request):
            return await asyncio.to_thread(self.handle_request, request)

    return Through()


def test_rows_get_the_logits_of_the_exact_executor(transport, shared_bundle, png):
    golden = shared_bundle.golden
    with PredictClient("http://testserver", transport=transport) as client:
        answer = client.infer(golden.inputs)
        assert (answer.model, answer.version) == ("colours", "1")
        np.testing.assert_array_equal(answer.logits, golden.logits)
        np.testing.assert_array_equal(
            client.infer(golden.inputs[:1], model="colours", version="1").logits, golden.logits[:1]
        )
        assert client.ready()
        assert client.ready("colours")
        metadata = client.metadata()
        assert (metadata.name, metadata.versions) == ("colours", ("1",))
        assert metadata.inputs[0].shape == (-1, 3, 8, 8)
        assert client.predict([png("lime")]).batch_rows == 1
        with pytest.raises(UsageError, match="400"):
            client.infer(golden.inputs[:, :, :4])
        with pytest.raises(UsageError, match="404"):
            client.metadata("other")


def test_the_asynchronous_client_answers_alike(transport, shared_bundle, png):
    golden = shared_bundle.golden

    async def ask():
        async with AsyncPredictClient("http://testserver", transport=transport) as client:
            answers = await asyncio.gather(*(client.infer(golden.inputs[index : index + 1]) for index in range(4)))
            predicted = await client.predict([png("lime"), png("red")])
            return answers, predicted, await client.ready(), await client.metadata()

    answers, predicted, ready, metadata = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate([answer.logits for answer in answers]), golden.logits)
    assert [image[0].label for image in predicted.predictions] == ["green", "red"]
    assert ready
    assert metadata.name == "colours"


def test_both_clients_wait_for_a_busy_server():
    def network(asked):
        def answer(request):
            asked.append(float(request.headers["X-Request-Timeout-Ms"]))
            if len(asked) < 3:
                return httpx2.Response(429, json={"error": "full"}, headers={"Retry-After": "0"})
            return httpx2.Response(200, json={"model": "m", "version": "1", "predictions": [], "timings": {}})

        return httpx2.MockTransport(answer)

    asked = []
    with PredictClient("server", timeout_s=5, transport=network(asked)) as client:
        assert client.predict([b"x"]).model == "m"
    assert len(asked) == 3
    assert 0 < asked[2] <= asked[0] <= 5000

    async def ask():
        async with AsyncPredictClient("server", timeout_s=5, transport=network(again)) as client:
            return await client.predict([b"x"])

    again = []
    assert asyncio.run(ask()).model == "m"
    assert len(again) == 3
