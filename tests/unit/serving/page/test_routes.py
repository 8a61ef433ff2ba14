import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Histogram

from cpt_deploy.bundle import update_validation, write_bundle
from cpt_serving import load_settings
from cpt_serving.access.api_keys import add_key
from cpt_serving.adapters import adapter_of
from cpt_serving.adapters.samples import drawing_style
from cpt_serving.evidence import evidence_of
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.routes import docs
from cpt_serving.routes.page import PAGE_HEADERS
from cpt_serving.routes.v2_infer import infer_paths
from cpt_serving.telemetry.stats import summarize


def labelled(contents, labels):
    """The contents with other labels."""
    return replace(contents, processor=replace(contents.processor, labels=labels))


def test_the_page_and_its_files_are_served_with_strict_headers(client):
    index = client.get("/")
    assert PAGE_HEADERS.items() <= {key.title(): value for key, value in index.headers.items()}.items()
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert "'unsafe" not in index.headers["content-security-policy"]
    linked = [part.split('"')[0] for part in index.text.split('"page/')[1:]]
    assert {"app.js", "page.css", "icon.svg"} <= set(linked)
    for name in [*linked, "charts.js", "dom.js", "drawing.js", "evidence.js", "live.js", "prediction.js"]:
        response = client.get(f"/page/{name}")
        assert response.status_code == 200
        assert "https://" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "static%00", "app.py"])
def test_nothing_but_the_pages_files_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_without_the_page_the_root_leads_to_the_docs(shared_bundle, connect_to):
    with connect_to(shared_bundle, page=False) as client:
        assert client.get("/", follow_redirects=False).headers["location"] == "docs"
        for path in ("/stats", "/evidence", "/samples", "/page/app.js"):
            assert client.get(path).status_code == 404
    with connect_to(shared_bundle, page=False, docs=False) as client:
        assert client.get("/").status_code == 404


def test_samples_are_the_golden_inputs(client, shared_bundle):
    listed = client.get("/samples").json()
    assert listed["drawing"] is None
    assert [sample["label"] for sample in listed["samples"]] == [
        shared_bundle.processor.labels[index] for index in shared_bundle.golden.outputs["logits"].argmax(axis=1)
    ]
    for sample in listed["samples"]:
        response = client.get(f"/samples/{sample['index']}.png")
        image = Image.open(io.BytesIO(response.content))
        golden = shared_bundle.golden.inputs["image"][sample["index"]]
        # Random golden inputs lie between two pixel values.
        np.testing.assert_allclose(shared_bundle.processor.preprocessing.apply(image), golden, atol=1 / 255 + 1e-6)
    assert client.get("/samples/4.png").status_code == 404
    assert client.get("/samples/-1.png").status_code == 422


def test_an_unknown_model_has_neither_evidence_nor_samples(client):
    for path in ("/evidence", "/samples", "/samples/0.png"):
        assert client.get(path, params={"model": "other"}).status_code == 404
    assert client.get("/models").json() == {"models": [{"name": "colours", "versions": ["1"], "form": "image"}]}


def test_small_grey_samples_say_how_to_draw(grey_bundle, bundle):
    style = drawing_style(grey_bundle.processor, grey_bundle.golden)
    assert (style.ground, style.fill) == ("dark", 0.75)
    assert drawing_style(bundle.processor, bundle.golden) is None


def test_evidence_without_a_validation_has_no_figures(client, shared_bundle):
    evidence = client.get("/evidence").json()
    assert evidence["validation"] is None
    assert evidence["sha256"] == shared_bundle.sha256
    assert evidence["size_bytes"] == shared_bundle.onnx_path.stat().st_size
    assert (evidence["task"], evidence["form"]) == ("image-classification", "image")
    assert evidence["facts"] == {"input": "8 x 8 colour", "classes": 3}


REPORT = {
    "content_sha256": "0" * 64,
    "verdict": "passed",
    "passed": True,
    "reasons": [],
    "validated_at": "2026-01-01T00:00:00+00:00",
    "dataset": {"name": "colours", "split": "test", "samples": 200, "sha256": "1"},
    "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
    "runtimes": [
        {"name": "trained", "accuracy": 0.91, "interval_95": [0.9, 0.92], "finite": True},
        {"name": "onnxruntime", "accuracy": 0.905, "interval_95": [0.89, 0.92], "finite": True},
    ],
    "integers": {"compared": 1000, "mismatching": 0, "first_difference": None},
    "graph": {"operators": {"QGemm": 1}, "float_operators": {"Conv": 2}},
    "versions": {"onnxruntime": "1.30.0"},
    "cpu": {"model": "a processor"},
}


def told_of(bundle):
    return evidence_of(adapter_of(bundle, load_settings(bundle=bundle.path), MemoryBudget(1)))


def test_evidence_tells_what_was_measured(bundle):
    report = {**REPORT, "content_sha256": bundle.content_sha256}
    facts = told_of(update_validation(bundle, report)).validation
    assert facts.passed
    assert facts.of_this_model
    assert (facts.value, facts.interval_95, facts.trained_value) == (0.905, (0.89, 0.92), 0.91)
    assert (facts.verdict, facts.of_this_model) == ("passed", True)
    assert (facts.compared_integers, facts.mismatching_integers, facts.float_operators) == (1000, 0, 2)
    assert (facts.runtime, facts.cpu, facts.samples) == ("1.30.0", "a processor", 200)


@pytest.mark.parametrize(("bits", "told"), [(5.53, "5.53"), (8, "8")])
def test_of_bits_by_layer_the_mean_is_told(bundle, bits, told):
    mixed = replace(bundle, config={**bundle.config, "cpt": {**bundle.facts, "weight_bits": bits}})
    assert json.dumps(told_of(mixed).model_dump(mode="json")["weight_bits"]) == told


def test_evidence_of_another_file_says_so(bundle):
    changed = {**REPORT, "content_sha256": "0" * 64}
    assert not told_of(update_validation(bundle, changed)).validation.of_this_model


@pytest.mark.parametrize(
    ("change", "nulls"),
    [
        ({"integers": None, "graph": None}, ("compared_integers", "mismatching_integers", "float_operators")),
        ({"runtimes": []}, ("value", "trained_value")),
        ({"versions": None, "cpu": None}, ("runtime", "cpu")),
    ],
    ids=str,
)
def test_parts_that_were_not_measured_are_null(bundle, change, nulls):
    facts = told_of(update_validation(bundle, {**REPORT, **change})).validation
    assert facts.passed
    assert [getattr(facts, name) for name in nulls] == [None] * len(nulls)
    assert facts.samples == 200


@pytest.mark.parametrize("change", [{"passed": None}, {"integers": {"compared": "many"}}], ids=str)
def test_a_report_of_another_form_counts_as_none(bundle, change):
    assert told_of(update_validation(bundle, {**REPORT, **change})).validation is None


def test_evidence_is_what_it_is_now(bundle, connect_to):
    with connect_to(bundle) as client:
        assert client.get("/evidence").json()["validation"] is None
        update_validation(bundle, {**REPORT, "content_sha256": bundle.content_sha256})
        found = client.get("/evidence").json()["validation"]
        assert (found["passed"], found["of_this_model"], found["value"]) == (True, True, 0.905)
        shutil.rmtree(bundle.path)
        assert client.get("/evidence").json()["size_bytes"] is None


def test_the_description_shows_nothing_of_a_bundle(shared_bundle, connect_to, tmp_path, png):
    add_key(tmp_path / "keys.txt", "shop", ["infer"])
    with connect_to(shared_bundle, api_keys=tmp_path / "keys.txt") as guarded:
        text = guarded.get("/openapi.json").text
        assert "colours" not in text
        assert "[1,3,8,8]" not in text
    with connect_to(shared_bundle) as client:
        described = client.get("/openapi.json").json()
        golden = {f"{value:.4f}" for value in shared_bundle.golden.inputs["image"].ravel()}
        assert not golden & set(re.findall(r"-?\d\.\d{4}", json.dumps(described)))
        # The examples work as they stand.
        body = described["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert client.post("/v2/models/colours/infer", json=body["example"]).status_code == 200
        bodies = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name, example in bodies.items():
            assert (client.post("/predict", json=example["value"]).status_code == 200) or name == "pixels"


def test_the_description_is_made_once(shared_bundle, connect_to, monkeypatch):
    made = []
    monkeypatch.setattr(docs, "infer_paths", lambda service: made.append(service) or infer_paths(service))
    with connect_to(shared_bundle) as client:
        texts = {client.get("/openapi.json").text for _ in range(20)}
    assert len(texts) == len(made) == 1
    assert "/infer" in texts.pop()


def test_stats_add_up_what_prometheus_counts(client, png):
    before = client.get("/stats").json()
    for _ in range(3):
        client.post("/predict", files=[("file", png())] * 2)
    client.post("/predict", content=b"no image")
    client.get("/health/live")
    after = client.get("/stats").json()
    change = {name: after[name] - before[name] for name in ("requests", "refused", "rows", "inferences")}
    assert change == {"requests": 4, "refused": 1, "rows": 6, "inferences": 3}
    assert after["ready"]
    assert after["clock_s"] > before["clock_s"]
    assert sum(after["latency"]["counts"]) == after["requests"]
    assert len(after["latency"]["counts"]) == len(after["latency"]["bounds_s"]) + 1


def test_stats_sum_histograms_over_routes():
    registry = CollectorRegistry()
    seconds = Histogram("cpt_serve_request_seconds", "", ["route"], buckets=(0.1, 1), registry=registry)
    requests = Counter("cpt_serve_requests", "", ["route", "method", "status"], registry=registry)
    for route, value in [("/predict", 0.05), ("/v2/models/{model}/infer", 0.5), ("/predict", 0.6), ("/predict", 3)]:
        seconds.labels(route).observe(value)
        requests.labels(route, "POST", "200").inc()
    seconds.labels("/metrics").observe(0.05)
    requests.labels("/metrics", "GET", "200").inc()
    stats = summarize([each for family in registry.collect() for each in family.samples], clock_s=1.0, ready=False)
    assert stats.latency.bounds_s == [0.1, 1.0]
    assert stats.latency.counts == [1, 2, 1]
    assert (stats.requests, stats.refused, stats.rows, stats.in_flight) == (4, 0, 0, 0)


def test_the_page_shows_labels_as_text_whatever_they_hold(tmp_path, bundle_contents, connect_to, png):
    contents = labelled(bundle_contents(), ("<b>red</b>", "green", "blue"))
    with connect_to(write_bundle(tmp_path / "bundle", contents=contents)) as client:
        assert client.post("/predict", content=png()).json()["predictions"][0][0]["label"] == "<b>red</b>"
        assert "innerHTML" not in "".join(client.get(f"/page/{name}.js").text for name in ("dom", "prediction", "app"))
