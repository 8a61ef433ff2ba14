"""A language model's tensors over gRPC, beside a classifier on the same server, against onnxruntime and HTTP."""

import contextlib
import queue
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx2
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
import grpc  # noqa: E402
from tritonclient.grpc import service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from cpt_serving import load_settings  # noqa: E402

MODEL = "bigram"
NAMES = ("logits", "seen_after", "present")
TOKENS = [2, 3, 4, 5, 0, 2, 3]
PARTS = (TOKENS[:3], TOKENS[3:4], TOKENS[4:])
ONE = np.array([[2]])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def addresses(language_bundle, shared_bundle, running_server, get, wait_until, tmp_path_factory):
    """Of gRPC and of the web."""
    folder = tmp_path_factory.mktemp("server")
    for bundle in (language_bundle, shared_bundle):
        shutil.copytree(bundle.path, folder / "models" / bundle.name / "1")
    port = free_port()
    limits = {"generations": 1, "max_free_size": 10, "max_rows": 4, "max_new_tokens": 1_000_000}
    with running_server(folder, SimpleNamespace(path=folder / "models"), grpc_port=port, **limits) as (_, url):
        wait_until(lambda: get(f"{url}/v2/health/ready").status_code == 200)
        yield f"127.0.0.1:{port}", url


@pytest.fixture(scope="module")
def client(addresses):
    with triton.InferenceServerClient(addresses[0]) as client:
        yield client


@pytest.fixture(scope="module")
def web(addresses):
    with triton_http.InferenceServerClient(addresses[1].removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def session(language_bundle):
    """onnxruntime without anything of ours around it."""
    return onnxruntime.InferenceSession(str(language_bundle.onnx_path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def call(addresses):
    """Sends a message as it is, past what the client would correct."""
    with grpc.insecure_channel(addresses[0]) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )


def tensors(library, **values):
    """Inputs of either of Triton's clients."""
    datatypes = {"i4": "INT32", "i8": "INT64", "f4": "FP32", "f8": "FP64"}
    inputs = []
    for name, array in values.items():
        inputs.append(library.InferInput(name, list(array.shape), datatypes[array.dtype.str[1:]]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def nothing_read(rows):
    return {"seen": np.zeros((rows, 8), np.float32), "past": np.zeros((rows, 0), np.int64)}


def test_metadata_and_configuration_are_those_of_http(client, web):
    metadata = client.get_model_metadata(MODEL)
    assert [(each.name, each.datatype, list(each.shape)) for each in [*metadata.inputs, *metadata.outputs]] == [
        ("input_ids", "INT64", [-1, -1]),
        ("seen", "FP32", [-1, 8]),
        ("past", "INT64", [-1, -1]),
        ("logits", "FP32", [-1, -1, 8]),
        ("seen_after", "FP32", [-1, 8]),
        ("present", "INT64", [-1, -1]),
    ]
    over_http = web.get_model_metadata(MODEL)
    for mine, other in ((metadata.inputs, over_http["inputs"]), (metadata.outputs, over_http["outputs"])):
        assert [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in mine] == other
    config, over_http = client.get_model_config(MODEL).config, web.get_model_config(MODEL)
    assert config.max_batch_size == over_http["max_batch_size"] == 4
    type_names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert [list(t.dims) for t in config.input] == [[-1], [8], [-1]]
    for mine, other in ((config.input, over_http["input"]), (config.output, over_http["output"])):
        described = [{"name": t.name, "data_type": type_names[t.data_type].name, "dims": list(t.dims)} for t in mine]
        assert described == other


@pytest.mark.parametrize("explicit", [False, True], ids=["states left out at first", "states of nothing read"])
def test_state_goes_round_through_the_client(client, web, session, logits_of, explicit):
    state, rows = nothing_read(2), []
    for index, part in enumerate(PARTS):
        tokens = np.array([part, part[::-1]])
        expected = session.run(NAMES, {"input_ids": tokens, **state})
        given = {"input_ids": tokens, **(state if explicit or index else {})}
        answer = client.infer(MODEL, tensors(triton, **given), request_id=f"r-{index}")
        over_http = web.infer(MODEL, tensors(triton_http, **given))
        for name, value in zip(NAMES, expected, strict=True):
            assert answer.as_numpy(name).dtype == value.dtype
            assert np.array_equal(answer.as_numpy(name), value)
            assert np.array_equal(over_http.as_numpy(name), value)
        response = answer.get_response()
        assert (response.id, response.model_name, response.model_version) == (f"r-{index}", MODEL, "1")
        state = {"seen": answer.as_numpy("seen_after"), "past": answer.as_numpy("present")}
        rows.append(answer.as_numpy("logits")[0])
    np.testing.assert_allclose(np.concatenate(rows), logits_of(TOKENS), atol=1e-5)
    assert state["past"][0].tolist() == TOKENS


def typed_request(tokens, seen=(), past=None, shape=None):
    """A message whose elements stand in the fields of their types."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="input_ids", datatype="INT64", shape=shape or [1, len(tokens)])
    tensor.contents.int64_contents.extend(tokens)
    if seen:
        request.inputs.add(name="seen", datatype="FP32", shape=[1, 8]).contents.fp32_contents.extend(seen)
    if past is not None:
        past_input = request.inputs.add(name="past", datatype="INT64", shape=[1, len(past)])
        past_input.contents.int64_contents.extend(past)
    return request


def test_typed_contents_are_answered_with_typed_contents(call, session):
    seen, past = [0.0] * 8, []
    for part in PARTS:
        state = {"seen": np.array([seen], np.float32), "past": np.array([past], np.int64)}
        expected = session.run(NAMES, {"input_ids": np.array([part]), **state})
        answer = call(typed_request(part, seen, past))
        assert not answer.raw_output_contents
        assert [tensor.name for tensor in answer.outputs] == list(NAMES)
        for tensor, field, value in zip(
            answer.outputs, ("fp32_contents", "fp32_contents", "int64_contents"), expected, strict=True
        ):
            assert list(tensor.shape) == list(value.shape)
            assert np.array_equal(np.array(getattr(tensor.contents, field), value.dtype), value.ravel())
        seen, past = list(answer.outputs[1].contents.fp32_contents), list(answer.outputs[2].contents.int64_contents)


def test_only_what_is_wanted_comes_and_in_that_order(client, call):
    outputs = [triton.InferRequestedOutput(name) for name in ("present", "logits")]
    response = client.infer(MODEL, tensors(triton, input_ids=ONE), outputs=outputs).get_response()
    assert [tensor.name for tensor in response.outputs] == ["present", "logits"]
    assert [len(raw) for raw in response.raw_output_contents] == [8, 32]
    request = typed_request([2])
    request.outputs.add(name="logits").parameters["binary_data"].bool_param = True
    assert [len(raw) for raw in call(request).raw_output_contents] == [32]
    request.outputs.add(name="present")
    with pytest.raises(grpc.RpcError, match="binary_data to be the same of all outputs"):
        call(request)


def test_a_stream_decodes_token_by_token(client, logits_of):
    """Each step goes out when the answer to the one before is there; an error does not end the stream."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))

    def step(**given):
        client.async_stream_infer(MODEL, tensors(triton, **given))
        return answers.get(timeout=30)

    read, given = [2], {"input_ids": ONE}
    for _ in range(6):
        result, error = step(**given)
        assert error is None
        token = int(result.as_numpy("logits")[0, -1].argmax())
        assert token == logits_of(read)[-1].argmax()
        read.append(token)
        given = {
            "input_ids": np.array([[token]]), "seen": result.as_numpy("seen_after"), "past": result.as_numpy("present"),
        }  # fmt: skip
        if len(read) == 4:
            result, error = step(input_ids=np.array([[8]]))
            assert result is None
            assert "tokens in 0..7" in str(error)
    client.stop_stream()
    assert read == [2, 3, 4, 5, 6, 7, 0]


WRONG = {
    "no tokens": ({"seen": np.zeros((1, 8), np.float32)}, "['input_ids'] once, and all or none of the states"),
    "beyond the vocabulary": ({"input_ids": np.array([[8]])}, "Expected tokens in 0..7, but got 8..8"),
    "another datatype": ({"input_ids": np.array([[1]], np.int32)}, "INT64"),
    "one-dimensional": ({"input_ids": np.array([1])}, "of the shape [-1, -1], but got 'INT64' of [1]"),
    "no token": ({"input_ids": np.zeros((1, 0), np.int64)}, "where length is at least 1"),
    "a long text": ({"input_ids": np.zeros((1, 11), np.int64)}, "Expected a length of at most 10"),
    "a state of another size": (
        {"input_ids": ONE, **nothing_read(1), "seen": np.zeros((1, 7), np.float32)}, "[-1, 8]",
    ),
    "a state of other rows": ({"input_ids": ONE, **nothing_read(2)}, "where N is 1 in other inputs"),
    "a state of no numbers": (
        {"input_ids": ONE, **nothing_read(1), "seen": np.full((1, 8), np.nan, np.float32)}, "finite",
    ),
    "one state of two": ({"input_ids": ONE, "seen": np.zeros((1, 8), np.float32)}, "all or none"),
    "another input": ({"input_ids": ONE, "other": np.zeros((1, 1))}, "but got ['input_ids', 'other']"),
    "an image": ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "but got ['image']"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_tensors_are_refused_as_over_http(client, web, given, said):
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, tensors(triton, **given))
    with pytest.raises(InferenceServerException) as over_http:
        web.infer(MODEL, tensors(triton_http, **given))
    assert said in caught.value.message()
    assert caught.value.message() == over_http.value.message()
    assert (caught.value.status(), over_http.value.status()) == ("StatusCode.INVALID_ARGUMENT", "400")


def test_too_many_rows_are_refused_as_over_http(client, web):
    for asked, library, status in ((client, triton, "StatusCode.RESOURCE_EXHAUSTED"), (web, triton_http, "413")):
        with pytest.raises(InferenceServerException, match="at most 4 rows in one request, but got 5") as caught:
            asked.infer(MODEL, tensors(library, input_ids=np.zeros((5, 1), np.int64)))
        assert caught.value.status() == status


def test_a_classifier_refuses_tokens_as_over_http(client, web):
    messages = []
    for asked, library in ((client, triton), (web, triton_http)):
        with pytest.raises(InferenceServerException) as caught:
            asked.infer("colours", tensors(library, tokens=ONE, **nothing_read(1)))
        messages.append(caught.value.message())
    assert (
        messages[0] == messages[1] == "Expected each of the inputs ['image'] once, but got ['tokens', 'seen', 'past']"
    )
    image = np.zeros((1, 3, 8, 8), np.float32)
    assert client.infer("colours", tensors(triton, image=image)).as_numpy("logits").shape == (1, 3)


def test_contradictory_messages_are_refused(call):
    missing = typed_request([2], [0.0] * 8)
    missing.inputs[0].contents.Clear()
    missing.inputs[1].contents.Clear()
    missing.raw_input_contents.append(bytes(8))
    both = typed_request([2], [0.0] * 8)
    both.raw_input_contents.extend([bytes(8), bytes(32)])
    unknown = typed_request([2])
    unknown.outputs.add(name="probabilities")
    shared = typed_request([2])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "here"
    wrong_field = typed_request([])
    wrong_field.inputs[0].contents.int_contents.append(2)
    twice = typed_request([2])
    twice.inputs.add().CopyFrom(twice.inputs[0])
    late = typed_request([2])
    late.parameters["timeout"].string_param = "soon"
    for said, request in {
        "Expected the 2 tensors in raw_input_contents or in contents, but got 1 in the one and 'none'": missing,
        "got 2 in the one and ['input_ids', 'seen']": both,
        "but got 'probabilities'": unknown,
        "shared_memory_region: Expected nothing, but got 'here'": shared,
        "elements of INT64 in int64_contents": wrong_field,
        "once, and all or none of the states ['past', 'seen'], but got ['input_ids', 'input_ids']": twice,
        "parameters.timeout: Expected an integer": late,
        "to have 16 bytes, but got 8": typed_request([2], shape=[1, 2]),
        "inputs.0.shape.1: Expected at least 0": typed_request([2], shape=[1, -1]),
    }.items():
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.details()


def test_limits_of_time_and_of_texts(client, addresses, get, wait_until):
    url = addresses[1]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, tensors(triton, input_ids=ONE), timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    endless = {"prompt": "the", "max_tokens": 1_000_000, "temperature": 5.0, "stream": True}
    with (
        httpx2.Client(base_url=url, trust_env=False, timeout=30) as other,
        other.stream("POST", f"/models/{MODEL}/generate", json=endless) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        assert other.post(f"/models/{MODEL}/generate", json=endless).status_code == 429
        # A single call is no text: it takes turns with the calls of those that are under way.
        assert client.infer(MODEL, tensors(triton, input_ids=ONE)).as_numpy("logits").shape == (1, 1, 8)
    # A text that its client left ends a moment later.
    wait_until(lambda: 'cpt_serve_texts_in_flight{model="bigram",version="1"} 0.0' in get(f"{url}/metrics").text)


def counted(client, metrics):
    """Of the statistics: texts, executions, requests that were answered; of the metrics: calls with their status."""
    (model,) = client.get_inference_statistics(MODEL).model_stats
    lines = metrics.splitlines()
    calls = [
        float(next((line.split()[-1] for line in lines if wanted in line and "requests_total" in line), 0))
        for method in ("ModelInfer", "ModelStreamInfer")
        for status in (200, 400)
        for wanted in [f'route="/inference.GRPCInferenceService/{method}",status="{status}"']
    ]
    return np.array([model.inference_count, model.execution_count, model.inference_stats.success.count, *calls])


def test_calls_are_counted(client, addresses, get):
    url = addresses[1]
    before = counted(client, get(f"{url}/metrics").text)
    client.infer(MODEL, tensors(triton, input_ids=ONE))
    with contextlib.suppress(InferenceServerException):
        client.infer(MODEL, tensors(triton, input_ids=np.array([[8]])))
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put(result))
    for token in (2, 3, 8):
        client.async_stream_infer(MODEL, tensors(triton, input_ids=np.array([[token]])))
    for _ in range(3):
        answers.get(timeout=30)
    client.stop_stream()
    assert (counted(client, get(f"{url}/metrics").text) - before).tolist() == [3, 3, 3, 1, 1, 2, 1]


INDEPENDENT = """
import sys
import grpc
from open_inference.grpc import protocol, service
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = service.GRPCInferenceServiceStub(channel)
    tensor = protocol.ModelInferRequest.InferInputTensor(name="input_ids", datatype="INT64", shape=[1, 2])
    tensor.contents.int64_contents.extend([2, 3])
    answer = stub.ModelInfer(protocol.ModelInferRequest(model_name="bigram", inputs=[tensor]))
    print({each.name: list(each.shape) for each in answer.outputs}, list(answer.outputs[2].contents.int64_contents))
"""


def test_an_independent_client(addresses):
    pytest.importorskip("open_inference.grpc", reason="pip install open-inference-grpc")
    # In a process of its own: two definitions of one protocol cannot be loaded together.
    command = [sys.executable, "-c", INDEPENDENT, addresses[0]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    expected = "{'logits': [1, 2, 8], 'seen_after': [1, 8], 'present': [1, 2]} [2, 3]\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_message_is_understood_or_refused(language_bundle, data):
    """Whatever fits the messages' types ends in tokens and a state that the model takes, or in a 4xx."""
    from cpt_serving.adapters import adapter_of
    from cpt_serving.grpc_api.messages import infer_message, parse_message
    from cpt_serving.inference.memory import MemoryBudget
    from cpt_serving.inference.threads import Work
    from cpt_serving.web.errors import RequestError

    settings = load_settings(bundle=language_bundle.path, max_rows=4)
    adapter = adapter_of(language_bundle, settings, MemoryBudget(1 << 20))
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    datatypes = st.sampled_from(["INT64", "FP32", "INT32", "UINT8", "FP16", "BYTES", "BOOL", "X"])
    shapes = st.sampled_from([[1, 2], [1, 0], [1, 8], [2, 1]]) | st.lists(st.integers(-1, 3), max_size=3)
    for name in data.draw(st.lists(st.sampled_from(["input_ids", "input_ids", "seen", "past", "image"]), max_size=3)):
        native = {"input_ids": "INT64", "past": "INT64", "seen": "FP32"}.get(name, "FP32")
        tensor = request.inputs.add(name=name, datatype=data.draw(st.just(native) | datatypes), shape=data.draw(shapes))
        tensor.contents.int64_contents.extend(data.draw(st.lists(st.integers(-1, 8), max_size=2)))
        if native == "FP32":
            tensor.contents.fp32_contents.extend(data.draw(st.just([0.5] * 8) | st.lists(st.floats(width=32))))
    if data.draw(st.booleans()):
        for tensor in request.inputs:
            tensor.contents.Clear()
        lengths = st.sampled_from([0, 8, 16, 32]).map(bytes) | st.binary(max_size=9)
        request.raw_input_contents.extend(data.draw(st.lists(lengths, min_size=1, max_size=3)))
    for name in data.draw(st.lists(st.sampled_from([*NAMES, "other"]), max_size=3)):
        request.outputs.add(name=name)
    inputs = None
    with contextlib.suppress(RequestError):
        parsed = parse_message(request)
        inputs = adapter.decode(parsed, Work())
    if inputs is not None:
        types = {"input_ids": np.int64, "seen": np.float32, "past": np.int64}
        assert {name: value.dtype for name, value in inputs.items()} == types
        logits = np.zeros((*inputs["input_ids"].shape, 8), np.float32)
        outputs = {"logits": logits, "seen_after": inputs["seen"], "present": inputs["past"]}
        answer = infer_message(language_bundle, None, adapter.encode(parsed, outputs))
        wanted = list(dict.fromkeys(output.name for output in request.outputs)) or list(NAMES)
        assert [tensor.name for tensor in answer.outputs] == wanted


def test_a_bug_costs_one_request_of_a_stream_and_tells_nothing(language_bundle, connect_to, monkeypatch):
    from cpt_serving.adapters.text import TextAdapter

    def fails(*_arguments):
        raise RuntimeError("a secret")

    answers = queue.Queue()
    port = free_port()
    with (
        connect_to(language_bundle, grpc_port=port) as other,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        client.start_stream(lambda result, error: answers.put((result, error)))
        with monkeypatch.context() as patched:
            patched.setattr(TextAdapter, "run", fails)
            client.async_stream_infer(MODEL, tensors(triton, input_ids=ONE))
            assert str(answers.get(timeout=30)[1]) == "Internal error; the server's log has it"
            with pytest.raises(InferenceServerException, match="Internal error; the server's log has it") as caught:
                client.infer(MODEL, tensors(triton, input_ids=ONE))
            assert caught.value.status() == "StatusCode.INTERNAL"
        client.async_stream_infer(MODEL, tensors(triton, input_ids=ONE))
        assert answers.get(timeout=30)[0].as_numpy("logits").shape == (1, 1, 8)
        client.stop_stream()
        metrics = other.get("/metrics").text
    for method in ("ModelInfer", "ModelStreamInfer"):
        assert f'route="/inference.GRPCInferenceService/{method}",status="500"}} 1.0' in metrics
