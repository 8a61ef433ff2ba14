import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

from cpt_deploy.bundle import Bundle, write_bundle
from cpt_deploy.errors import BundleError, UsageError
from cpt_serving import create_app, load_settings
from cpt_serving.adapters import adapter_of
from cpt_serving.app import create_service
from cpt_serving.inference.engine import EngineState
from cpt_serving.inference.memory import MemoryBudget


def metric(client, name, **labels):
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name) and all(label in line for label in wanted):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def other_codes(contents):
    """The contents with a golden sample that no runtime reproduces, by one code that decides nothing."""
    golden = contents.golden
    logits = golden.outputs["logits"].copy()
    logits[np.unravel_index(logits.argmin(), logits.shape)] -= np.float32(golden.scales["logits"])
    return replace(contents, golden=replace(golden, outputs={"logits": logits}))


@pytest.mark.parametrize("prefix", ["", "/v2"])
def test_health_of_a_server_that_is_ready(client, prefix):
    assert client.get(f"{prefix}/health/live").json() == {"live": True}
    assert client.get(f"{prefix}/health/ready").json() == {"live": True, "ready": True}


def test_before_the_model_is_loaded_only_liveness_answers(shared_bundle, png):
    # Without its lifespan the app never loads the model.
    client = TestClient(create_app(load_settings(bundle=shared_bundle.path)))
    assert client.get("/health/live").status_code == 200
    for response in (
        client.get("/health/ready"),
        client.get("/v2/health/ready"),
        client.get("/v2/models/colours/ready"),
        client.post("/predict", content=png()),
    ):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "being loaded" in response.json()["error"]


def test_after_the_announcement_readiness_fails_and_predictions_go_on(shared_bundle, connect_to, png):
    with connect_to(shared_bundle) as client:
        client.service.repository.begin_shutdown()
        assert "shutting down" in client.get("/health/ready").json()["error"]
        assert client.get("/v2/models/colours/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert client.post("/predict", content=png()).status_code == 200


def test_a_golden_sample_that_differs_keeps_the_server_unready(tmp_path, bundle_contents, connect_to, png):
    bundle = write_bundle(tmp_path / "bundle", contents=other_codes(bundle_contents()))
    with connect_to(bundle) as client:
        message = client.get("/health/ready").json()["error"]
        assert "1 of 12 output integers differ, by up to 1, and the largest outputs agree" in message
        assert client.post("/predict", content=png()).status_code == 503
    for accepted in ("labels", "off"):
        with connect_to(bundle, golden=accepted) as client:
            assert client.get("/health/ready").status_code == 200


def test_a_model_that_does_not_load_keeps_the_server_unready(tmp_path, bundle_contents, connect_to):
    bundle = write_bundle(tmp_path / "bundle", contents=replace(bundle_contents(), onnx=b"no model"))
    with connect_to(bundle) as client:
        assert "could not be loaded" in client.get("/health/ready").json()["error"]
        assert client.get("/health/live").status_code == 200


def test_a_shutdown_during_loading_is_not_undone_by_its_end(shared_bundle):
    repository = create_service(load_settings(bundle=shared_bundle.path)).repository
    engine = repository.models.find("colours")
    repository.begin_shutdown()
    asyncio.run(engine.load())
    assert engine.state is EngineState.UNLOADING


def test_a_damaged_bundle_is_refused_when_the_app_is_made(bundle):
    (bundle.path / "labels.txt").write_text("edited")
    with pytest.raises(BundleError, match=r"labels\.txt"):
        create_app(load_settings(bundle=bundle.path))


def test_settings_come_from_the_environment_where_none_are_given(shared_bundle, monkeypatch):
    monkeypatch.setenv("CPT_SERVE_BUNDLE", str(shared_bundle.path))
    monkeypatch.setenv("CPT_SERVE_DOCS", "false")
    client = TestClient(create_app())
    assert client.get("/health/live").status_code == 200
    assert client.get("/docs").status_code == 404


def test_request_ids_are_echoed_or_made(client):
    assert client.get("/v2", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {client.get("/v2").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for unfit in ("a b", "x" * 129, "é".encode()):
        assert len(client.get("/v2", headers={"X-Request-Id": unfit}).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/predict", 405), ("DELETE", "/v2", 405), ("GET", "/predict/", 404)],
)
def test_framework_errors_have_the_one_form(client, method, path, status):
    response = client.request(method, path, headers={"X-Request-Id": "me"})
    assert response.status_code == status
    assert response.json() == {"error": response.json()["error"], "request_id": "me"}
    assert path in response.json()["error"]
    if status == 405:
        assert response.headers["allow"]


def test_a_bug_is_a_500_without_details_and_the_next_request_works(shared_bundle, connect_to, png, caplog):
    with connect_to(shared_bundle) as client:
        engine = client.service.find("colours")
        original, engine.batcher.submit = engine.batcher.submit, None
        response = client.post("/predict", content=png(), headers={"X-Request-Id": "me"})
        assert response.status_code == 500
        assert response.json()["request_id"] == "me"
        assert "NoneType" not in response.text
        assert "request me failed" in caplog.text
        engine.batcher.submit = original
        assert client.post("/predict", content=png()).status_code == 200
        assert metric(client, "cpt_serve_requests_total", route="/predict", status="500") == 1


def test_docs_show_requests_that_work(client):
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    examples = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert client.post("/predict", json=example["value"]).status_code == 200
    infer = paths["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v2/models/colours/infer", json=infer).status_code == 200


def test_documented_answers_are_the_real_ones(client, png):
    from cpt_serving.oip.schemas import InferAnswer
    from cpt_serving.web.schemas import PredictAnswer

    strict = {"strict": True}
    PredictAnswer.model_validate_json(client.post("/predict", content=png()).content, **strict)
    infer = {"inputs": [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}]}
    InferAnswer.model_validate(client.post("/v2/models/colours/infer", json=infer).json(), **strict)


def test_metrics_count_requests_rows_and_the_model(shared_bundle, connect_to, png):
    with connect_to(shared_bundle) as client:
        for _ in range(2):
            client.post("/predict", files=[("file", png())] * 3)
        client.post("/predict", content=b"no image")
        client.get("/made/up/by/a/client")
        client.get("/v2/models/other")
        assert metric(client, "cpt_serve_requests_total", route="/predict", method="POST", status="200") == 2
        assert metric(client, "cpt_serve_requests_total", route="/predict", status="400") == 1
        assert metric(client, "cpt_serve_requests_total", route="unknown", status="404") == 1
        assert metric(client, "cpt_serve_requests_total", route="/v2/models/{model}", status="404") == 1
        assert metric(client, "cpt_serve_rows_total", model="colours", version="1") == 6
        assert metric(client, "cpt_serve_inference_seconds_count", model="colours") == 2
        assert metric(client, "cpt_serve_request_seconds_count", route="/predict") == 3
        assert metric(client, "cpt_serve_model_info", sha256=shared_bundle.sha256) == 1
        assert metric(client, "cpt_serve_requests_in_flight") == 1
        assert "made/up" not in client.get("/metrics").text


def test_requests_at_once_get_their_own_answers(client, png):
    from concurrent.futures import ThreadPoolExecutor

    colours = ["red", "lime", "blue"] * 10
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda colour: client.post("/predict", content=png(colour)).json(), colours))
    found = [answer["predictions"][0][0]["label"] for answer in answers]
    assert found == ["red", "green", "blue"] * 10


def test_loading_checks_the_provider(shared_bundle):
    settings = load_settings(bundle=shared_bundle.path, provider="abacus")
    with pytest.raises(UsageError, match="execution provider"):
        adapter_of(shared_bundle, settings, MemoryBudget(1 << 20)).load()


def test_serving_loads_no_torch(shared_bundle: Bundle):
    code = (
        "import sys\nfrom starlette.testclient import TestClient\nfrom cpt_serving import create_app, load_settings\n"
        f"with TestClient(create_app(load_settings(bundle={str(shared_bundle.path)!r}))) as client:\n"
        "    assert client.post('/predict', json={'instances': [[[0, 1], [2, 3]]]}).status_code in {200, 503}\n"
        "import cpt_serving.server, cpt_serving.client\n"
        "assert not {'torch', 'torchvision', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
