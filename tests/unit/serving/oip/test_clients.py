"""Clients of the protocol that others wrote, against `cpt serve` in a process of its own."""

import io

import httpx2
import numpy as np
import pytest
from PIL import Image

import cpt_deploy
from cpt_serving.access.api_keys import add_key

http = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
exceptions = pytest.importorskip("tritonclient.utils")

ROWS = np.random.default_rng(7).uniform(-1, 1, (5, 3, 8, 8)).astype(np.float32)
MODEL = "colours"


@pytest.fixture(scope="module")
def address(serve, shared_bundle):
    with serve(shared_bundle) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with http.InferenceServerClient(address, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def expected(reference_logits):
    return reference_logits(ROWS)


def image_input(values, datatype, *, binary=True):
    tensor = http.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODEL, "2")
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("cpt-deploy", cpt_deploy.__version__)
    for version in ("", "1"):
        metadata = client.get_model_metadata(MODEL, version)
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
        assert client.get_model_config(MODEL, version)["input"][0]["dims"] == [3, 8, 8]


@pytest.mark.parametrize("binary_output", [True, False, None], ids=str)
@pytest.mark.parametrize("binary", [True, False])
def test_infer(client, expected, binary, binary_output):
    outputs = None if binary_output is None else [http.InferRequestedOutput("logits", binary_data=binary_output)]
    result = client.infer(
        MODEL, [image_input(ROWS, "FP32", binary=binary)], "1", outputs, request_id="r-1", timeout=60_000_000
    )
    assert np.array_equal(result.as_numpy("logits"), expected)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", MODEL, "1")


def test_infer_asynchronously(client, expected):
    pending = [client.async_infer(MODEL, [image_input(ROWS[row : row + 1], "FP32")]) for row in range(5)]
    rows = [each.get_result().as_numpy("logits") for each in pending]
    assert np.array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_infer_compressed_both_ways(client, expected, coding):
    rows = np.tile(ROWS, (50, 1, 1, 1))
    result = client.infer(
        MODEL,
        [image_input(rows, "FP32")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("logits"), np.tile(expected, (50, 1)))


def test_bodies_that_were_made_apart_from_sending(address, expected):
    body, length = http.InferenceServerClient.generate_request_body([image_input(ROWS, "FP32")])
    headers = {"Inference-Header-Content-Length": str(length)}
    answer = httpx2.post(f"http://{address}/v2/models/{MODEL}/infer", content=body, headers=headers, trust_env=False)
    length = int(answer.headers["Inference-Header-Content-Length"])
    result = http.InferenceServerClient.parse_response_body(answer.content, header_length=length)
    assert np.array_equal(result.as_numpy("logits"), expected)


@pytest.mark.parametrize("datatype", ["FP16", "FP64"])
def test_infer_from_other_floats(client, reference_logits, datatype):
    types = {"FP16": np.float16, "FP64": np.float64}
    values = ROWS.astype(types[datatype])
    result = client.infer(MODEL, [image_input(values, datatype)])
    rows = values.astype(np.float32)
    assert np.array_equal(result.as_numpy("logits"), reference_logits(rows))


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client, expected, binary):
    outputs = [http.InferRequestedOutput("logits", binary_data=binary, class_count=2)]
    classes = client.infer(MODEL, [image_input(ROWS, "FP32")], outputs=outputs).as_numpy("logits")
    assert classes.shape == (5, 2)
    for row, texts in enumerate(classes):
        parts = [(text.decode() if isinstance(text, bytes) else text).split(":") for text in texts]
        order = np.argsort(-expected[row], kind="stable")[:2]
        assert [np.float32(part[0]) for part in parts] == expected[row][order].tolist()
        assert [(int(part[1]), part[2]) for part in parts] == [(i, ("red", "green", "blue")[i]) for i in order]


def test_pixels_and_image_files(client):
    image = Image.new("RGB", (13, 9), "blue")
    file = io.BytesIO()
    image.save(file, "PNG")
    outputs = [http.InferRequestedOutput("logits", class_count=1)]
    for values, datatype in (
        (np.asarray(image)[None], "UINT8"),
        (np.array([file.getvalue()] * 2, object), "BYTES"),
    ):
        classes = client.infer(MODEL, [image_input(values, datatype)], outputs=outputs).as_numpy("logits")
        assert classes.shape == (len(values), 1)
        assert all(text.item().decode().endswith(":2:blue") for text in classes)


def test_statistics(client):
    (before,) = client.get_inference_statistics(MODEL)["model_stats"]
    client.infer(MODEL, [image_input(ROWS, "FP32")])
    for arguments in ((), (MODEL,), (MODEL, "1")):
        (after,) = client.get_inference_statistics(*arguments)["model_stats"]
        assert after["inference_count"] - before["inference_count"] == 5
        assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1


@pytest.fixture(scope="module")
def administrator(serve, shared_bundle, tmp_path_factory):
    """A client whose key may infer, load and unload."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    key = add_key(file, "release", ["infer", "admin"])

    class WithKey(http.InferenceServerClientPlugin):
        def __call__(self, request):
            request.headers["Authorization"] = f"Bearer {key}"

    with serve(shared_bundle, api_keys=file) as address, http.InferenceServerClient(address) as client:
        client.register_plugin(WithKey())
        yield client


def test_repository(administrator):
    client = administrator
    entry = {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    assert client.get_model_repository_index() == [entry]
    client.unload_model(MODEL, unload_dependents=True)
    assert not client.is_model_ready(MODEL)
    assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
    with pytest.raises(exceptions.InferenceServerException, match=r"\[404\].*unloaded"):
        client.infer(MODEL, [image_input(ROWS, "FP32")])
    client.load_model(MODEL)
    assert client.is_model_ready(MODEL)
    with pytest.raises(exceptions.InferenceServerException, match=r"\[404\]"):
        client.load_model("other")
    with pytest.raises(exceptions.InferenceServerException, match="as it is there"):
        client.load_model(MODEL, config="{}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.infer(MODEL, [image_input(ROWS[:, :, :, :4], "FP32")]), "shape"),
        (lambda client: client.infer("other", [image_input(ROWS, "FP32")]), "served model"),
        (lambda client: client.infer(MODEL, [image_input(ROWS.astype(np.int32), "INT32")]), "UINT8"),
        (lambda client: client.infer(MODEL, [image_input(ROWS, "FP32")], timeout=1), "deadline"),
        (lambda client: client.get_model_metadata("other"), "served model"),
        (lambda client: client.get_system_shared_memory_status(), "known path"),
        (lambda client: client.get_trace_settings(), "known path"),
    ],
)
def test_errors_are_told_in_words(client, call, message):
    with pytest.raises(exceptions.InferenceServerException, match=message):
        call(client)


def test_an_independent_client(address, expected):
    """The client that is generated from the protocol's own OpenAPI file; it knows JSON only."""
    generated = pytest.importorskip("open_inference.openapi.client", reason="pip install open-inference-openapi")
    httpx = pytest.importorskip("httpx")
    with httpx.Client(trust_env=False) as connection:
        client = generated.OpenInferenceClient(base_url=f"http://{address}", httpx_client=connection)
        client.check_server_liveness()
        client.check_server_readiness()
        client.check_model_readiness(MODEL)
        client.check_model_version_readiness(MODEL, "1")
        assert client.read_server_metadata().name == "cpt-deploy"
        assert client.read_model_metadata(MODEL).inputs[0].shape == [-1, 3, 8, 8]
        assert client.read_model_version_metadata(MODEL, "1").outputs[0].datatype == "FP32"
        request = generated_request()
        for answer in (
            client.model_infer(MODEL, request=request),
            client.model_version_infer(MODEL, "1", request=request),
        ):
            assert answer.id == "7"
            assert np.array_equal(np.float32(answer.outputs[0].data.__root__).reshape(5, 3), expected)


def generated_request():
    from open_inference.openapi import types

    data = types.TensorData(__root__=ROWS.ravel().tolist())
    tensor = types.RequestInput(name="image", datatype="FP32", shape=list(ROWS.shape), data=data)
    return types.InferenceRequest(id="7", inputs=[tensor])
