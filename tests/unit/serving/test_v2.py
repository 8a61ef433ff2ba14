import base64
import json
import time

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cpt_deploy
from cpt_serving.access.api_keys import add_key

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
    assert response.json() == {
        "name": "cpt-deploy",
        "version": cpt_deploy.__version__,
        "extensions": [
            "binary_tensor_data",
            "classification",
            "generate",
            "model_configuration",
            "model_repository",
            "statistics",
        ],
    }


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
def test_infer_returns_the_exact_logits(client, reference_logits, path, nested):
    request = body(data=ROWS.tolist() if nested else ROWS.ravel().tolist()) | {"id": "abc"}
    answer = client.post(f"{path}/infer", json=request).json()
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "colours", "model_version": "1", "id": "abc"}
    assert {key: output[key] for key in ("name", "datatype", "shape")} == {
        "name": "logits",
        "datatype": "FP32",
        "shape": [3, 3],
    }
    # Not just near: JSON's decimal text has to bring back every bit.
    assert np.array_equal(np.array(output["data"], np.float32).reshape(3, 3), reference_logits(ROWS))


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
    request = body() | {"parameters": {"timeout": 60_000_000, "priority": 1, "sequence_id": 7}, "unknown": 1}
    assert client.post(f"{ROOT}/infer", json=request).status_code == 200


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "input"}, "the inputs ['image'] once, but got ['input']"),
        ({"datatype": "INT8"}, "FP32, FP64 or FP16 (normalised), UINT8 (pixels) or BYTES (image files)"),
        ({"datatype": "FP16"}, "comes only as bytes"),
        ({"datatype": "UINT8"}, "[N, height, width] or [N, height, width, 1 or 3]"),
        ({"datatype": "UINT8", "shape": [3, 64, 3]}, "integers 0..255"),
        ({"datatype": "BYTES"}, "[N] or [N, 1]"),
        ({"datatype": "BYTES", "shape": [1]}, "1 base64 texts"),
        ({"shape": [3, 3, 8, 9]}, "[-1, 3, 8, 8]"),
        ({"shape": [3, 8, 8]}, "[-1, 3, 8, 8]"),
        ({"shape": []}, "[-1, 3, 8, 8]"),
        ({"shape": [0, 3, 8, 8], "data": []}, "at least one row"),
        ({"shape": [-1, 3, 8, 8]}, "inputs.0.shape.0: Expected at least 0, but got -1"),
        ({"shape": [3, 3, 8, True]}, "inputs.0.shape.3: Expected an integer, but got True"),
        ({"shape": [2, 3, 8, 8]}, "[2, 3, 8, 8]"),
        ({"shape": "3"}, "inputs.0.shape: Expected a list, but got '3'"),
        ({"parameters": []}, "inputs.0.parameters: Expected entries as {key: value}, but got []"),
        (
            {"parameters": {"shared_memory_region": "r"}},
            "inputs.0.parameters.shared_memory_region: Expected nothing, but got 'r'",
        ),
        ({"parameters": {"binary_data_size": 3}}, "Inference-Header-Content-Length"),
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
    assert "the inputs ['image'] once" in refusal(client.post(f"{ROOT}/infer", json={"inputs": body()["inputs"] * 2}))
    request = body() | {"outputs": [{"name": "probabilities"}]}
    assert "'probabilities'" in refusal(client.post(f"{ROOT}/infer", json=request))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id": 3}, "id: Expected text, but got 3"),
        ({"outputs": {}}, "outputs: Expected a list, but got {}"),
        ({"outputs": [{}]}, "outputs.0.name: Expected a value, but got none"),
        (
            {"outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
            "classification: Expected at least 0, but got -1",
        ),
        (
            {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
            "binary_data: Expected true or false, but got 1",
        ),
        (
            {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]},
            "shared_memory_region: Expected nothing, but got 'r'",
        ),
        ({"parameters": {"timeout": "soon"}}, "parameters.timeout: Expected an integer"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output: Expected true or false, but got 'yes'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_wishes_are_400_with_what_was_expected(client, change, expected):
    assert expected in refusal(client.post(f"{ROOT}/infer", json=body() | change))


def test_classes_come_with_their_labels(client, png):
    outputs = [{"name": "logits", "parameters": {"classification": 2}}]
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[..., 1] = 255
    request = body(pixels, datatype="UINT8") | {"outputs": outputs}
    (output,) = client.post(f"{ROOT}/infer", json=request).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    (best, second) = (text.split(":") for text in output["data"])
    assert best[1:] == ["1", "green"]
    assert float(best[0]) > float(second[0])


def test_pixels_and_image_files_are_preprocessed_as_predict_does(client, png):
    file = png("lime", size=(31, 17))
    predicted = client.post("/predict", content=file).json()["predictions"][0][0]
    logits = {}
    tensors = {
        "UINT8": {"shape": [1, 17, 31, 3], "data": np.tile(np.array([0, 255, 0]), (1, 17, 31, 1)).tolist()},
        "BYTES": {"shape": [1], "data": [base64.b64encode(file).decode()]},
    }
    for datatype, tensor in tensors.items():
        request = {"inputs": [{"name": "image", "datatype": datatype, **tensor}]}
        (output,) = client.post(f"{ROOT}/infer", json=request).json()["outputs"]
        logits[datatype] = output["data"]
    assert logits["UINT8"] == logits["BYTES"]
    probabilities = np.exp(logits["BYTES"]) / np.exp(logits["BYTES"]).sum()
    assert (predicted["label"], predicted["probability"]) == ("green", pytest.approx(probabilities[1], rel=1e-5))


def test_an_image_file_in_a_tensor_that_is_none_is_400_and_says_which(client):
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [["bm8="]]}]}
    assert "row 1 of 1" in refusal(client.post(f"{ROOT}/infer", json=request))


def test_a_missed_timeout_is_504(client):
    request = body() | {"parameters": {"timeout": 1}}
    assert "deadline" in refusal(client.post(f"{ROOT}/infer", json=request), 504)


def test_the_configuration_is_tritons(client):
    config = client.get(f"{ROOT}/config").json()
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
    assert config["output"][0]["dims"] == [3]
    assert client.get(f"{ROOT}/versions/1/config").json() == config


def test_statistics_add_up(shared_bundle, connect_to):
    with connect_to(shared_bundle) as client:
        (before,) = client.get("/v2/models/stats").json()["model_stats"]
        assert (before["inference_count"], before["last_inference"]) == (0, 0)
        for _ in range(2):
            assert client.post(f"{ROOT}/infer", json=body()).status_code == 200
        client.post(f"{ROOT}/infer", json=body() | {"parameters": {"timeout": 1}})
        for path in ("/v2/models/stats", f"{ROOT}/stats", f"{ROOT}/versions/1/stats"):
            (after,) = client.get(path).json()["model_stats"]
            assert (after["name"], after["version"], after["inference_count"]) == ("colours", "1", 6)
            parts = after["inference_stats"]
            assert [parts[name]["count"] for name in ("success", "fail", "queue", "compute_infer")] == [2, 1, 2, 2]
            assert parts["success"]["ns"] == pytest.approx(parts["queue"]["ns"] + parts["compute_infer"]["ns"], abs=2)
            assert after["execution_count"] == parts["compute_input"]["count"] == parts["compute_output"]["count"] == 2
            assert parts["fail"]["ns"] > 0
            assert after["last_inference"] == pytest.approx(time.time() * 1e3, abs=60_000)


def test_the_repository_can_be_looked_at_and_not_changed_by_default(client):
    assert client.post("/v2/repository/index").json() == [
        {"name": "colours", "version": "1", "state": "READY", "reason": ""}
    ]
    assert "scope admin" in refusal(client.post("/v2/repository/models/colours/unload"), 403)
    assert "ready: Expected true or false" in refusal(client.post("/v2/repository/index", json={"ready": 1}))


def test_models_are_loaded_and_unloaded_by_administrators(shared_bundle, connect_to, tmp_path):
    key = add_key(tmp_path / "keys.txt", "release", ["infer", "admin"])
    with connect_to(shared_bundle, api_keys=tmp_path / "keys.txt") as client:
        client.headers["X-API-Key"] = key
        change = "/v2/repository/models/colours"
        assert client.post(f"{change}/unload").status_code == 200
        assert "unloaded" in refusal(client.post(f"{ROOT}/infer", json=body()), 404)
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert client.post(f"{change}/load", json={"parameters": {"version": "1"}}).status_code == 200
        assert client.post(f"{ROOT}/infer", json=body()).status_code == 200
        refusal(client.post(f"{change}/load", json={"parameters": {"version": "9"}}), 404)
        refusal(client.post("/v2/repository/models/other/load"), 404)
        assert "as it is there" in refusal(client.post(f"{change}/load", json={"parameters": {"config": "{}"}}))
        assert "version: Expected text" in refusal(client.post(f"{change}/load", json={"parameters": {"version": 1}}))


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
    response = client.post(f"{ROOT}/infer", content=json.dumps(body(**change)).encode())
    assert response.status_code in {200, 400, 413}
