import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpt_deploy.bundle import GoldenSample

ROOT = "/v2/models/colours"
ROWS = np.random.default_rng(2).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)


def body(rows=ROWS, **change):
    tensor = {"name": "image", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()} | change
    return {"inputs": [tensor]}


def refusal(response, status=400):
    content = response.json()
    assert (response.status_code, set(content)) == (status, {"error", "request_id"}), content
    return content["error"]


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_without_redirect(client, path):
    response = client.get(path, follow_redirects=False)
    assert response.status_code == 200
    assert response.json() == {"name": "cpt-deploy", "version": response.json()["version"], "extensions": []}


@pytest.mark.parametrize("path", [ROOT, f"{ROOT}/versions/1"])
def test_model_metadata(client, path):
    assert client.get(path).json() == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("path", [ROOT, f"{ROOT}/versions/1"])
def test_model_readiness(client, path):
    assert client.get(f"{path}/ready").json() == {"name": "colours", "ready": True}


@pytest.mark.parametrize("path", [ROOT, f"{ROOT}/versions/1"])
@pytest.mark.parametrize("nested", [False, True])
def test_infer_returns_the_exact_logits(client, reference_codes, shared_bundle, path, nested):
    request = body(data=ROWS.tolist() if nested else ROWS.ravel().tolist()) | {"id": "abc"}
    answer = client.post(f"{path}/infer", json=request).json()
    golden = shared_bundle.golden
    sample = GoldenSample(ROWS, reference_codes(ROWS), golden.logit_scale, golden.logit_zero_point)
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "colours", "model_version": "1", "id": "abc"}
    assert {key: output[key] for key in ("name", "datatype", "shape")} == {
        "name": "logits",
        "datatype": "FP32",
        "shape": [3, 3],
    }
    # Not just near: JSON's decimal text has to bring back every bit.
    assert np.array_equal(np.array(output["data"], np.float32).reshape(3, 3), sample.logits)


def test_infer_needs_no_content_type_and_returns_no_id_that_was_not_given(client):
    answer = client.post(f"{ROOT}/infer", content=orjson.dumps(body())).json()
    assert "id" not in answer


@pytest.mark.parametrize(
    "outputs", [None, [], [{"name": "logits"}], [{"name": "logits", "parameters": {"x": 1}}]], ids=str
)
def test_outputs_can_be_selected(client, outputs):
    answer = client.post(f"{ROOT}/infer", json=body() | {"outputs": outputs}).json()
    assert [output["name"] for output in answer["outputs"]] == ["logits"]


def test_parameters_of_clients_are_accepted(client):
    request = body() | {"parameters": {"binary_data_output": True, "timeout": 100, "priority": 1}, "unknown": 1}
    assert client.post(f"{ROOT}/infer", json=request).status_code == 200


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "input"}, "exactly the input 'image'"),
        ({"datatype": "FP64"}, "datatype FP32"),
        ({"datatype": "UINT8"}, "datatype FP32"),
        ({"shape": [3, 3, 8, 9]}, "[N, 3, 8, 8]"),
        ({"shape": [3, 8, 8]}, "[N, 3, 8, 8]"),
        ({"shape": []}, "[N, 3, 8, 8]"),
        ({"shape": [0, 3, 8, 8]}, "[N, 3, 8, 8]"),
        ({"shape": [-1, 3, 8, 8]}, "[N, 3, 8, 8]"),
        ({"shape": [2, 3, 8, 8]}, "[2, 3, 8, 8]"),
        ({"shape": "3"}, "inputs.0.shape"),
        ({"data": None}, "array of numbers"),
        ({"data": []}, "array of numbers"),
        ({"data": 1}, "array of numbers"),
        ({"data": ["a"] * ROWS.size}, "array of numbers"),
        ({"data": [True] * ROWS.size}, "array of numbers"),
        ({"data": [1e300] * ROWS.size}, "float32's range"),
        ({"data": [[1, 2], [3]]}, "rectangular"),
        ({"data": ROWS.reshape(3, 3, 64).tolist()}, "flat or nested"),
        ({"data": ROWS[:2].tolist()}, "flat or nested"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_tensors_are_400_with_what_was_expected(client, change, expected):
    assert expected in refusal(client.post(f"{ROOT}/infer", json=body(**change)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": 1}',
        b'{"inputs": [{"name": "image"}]}',
        b'{"id": 3, "inputs": []}',
    ],
    ids=bytes.decode,
)
def test_wrong_requests_are_400(client, content):
    assert refusal(client.post(f"{ROOT}/infer", content=content)).startswith("Expected")


def test_two_inputs_and_unknown_outputs_are_400(client):
    assert "exactly the input" in refusal(client.post(f"{ROOT}/infer", json={"inputs": body()["inputs"] * 2}))
    request = body() | {"outputs": [{"name": "probabilities"}]}
    assert "'probabilities'" in refusal(client.post(f"{ROOT}/infer", json=request))


def test_binary_tensors_are_refused_with_what_to_send(client):
    response = client.post(f"{ROOT}/infer", content=b"{}", headers={"Inference-Header-Content-Length": "2"})
    assert "binary_data=False" in refusal(response)
    refusal(client.post(f"{ROOT}/infer", content=b"x", headers={"Content-Encoding": "gzip"}), 415)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/other/ready"),
        ("POST", "/v2/models/other/infer"),
        ("GET", f"{ROOT}/versions/2"),
        ("GET", f"{ROOT}/versions/2/ready"),
        ("POST", f"{ROOT}/versions/2/infer"),
        ("GET", "/v2/models/..%2f..%2fetc"),
    ],
)
def test_unknown_models_and_versions_are_404(client, method, path):
    refusal(client.request(method, path, json={}), 404)


def test_too_many_rows_are_413(client):
    huge = {"shape": [257, 3, 8, 8], "data": [0.0]}
    assert "at most 256" in refusal(client.post(f"{ROOT}/infer", json=body(**huge)), 413)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["image", "", 1, None]),
            "shape": st.lists(st.integers(-(2**70), 2**70), max_size=5) | st.none() | st.text(max_size=3),
            "datatype": st.sampled_from(["FP32", "BYTES", 3, None]),
            "data": st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3)),
            "parameters": st.none() | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        },
    )
)
def test_no_tensor_is_a_server_error(client, change):
    import json

    response = client.post(f"{ROOT}/infer", content=json.dumps(body(**change)).encode())
    assert response.status_code in {200, 400, 413}
