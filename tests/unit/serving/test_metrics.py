"""What Prometheus reads: our own metrics, and the same under Triton's names."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cpt_serving.inference.observers import FAILURES
from cpt_serving.telemetry.metrics import Metrics

MODEL = {"model": "colours", "version": "1"}
# docs/user_guide/metrics.md of Triton Inference Server.
TRITON_COUNTERS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
}


def read(text):
    """Samples by name and labels, as Prometheus' own parser has them, and the types of the families."""
    families = list(text_string_to_metric_families(text))
    samples = {
        # Prometheus takes names as they are; its parser for Python gives every counter this end.
        (
            sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name,
            frozenset(sample.labels.items()),
        ): sample.value
        for family in families
        for sample in family.samples
    }
    return samples, {family.name: family.type for family in families}


def value(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def metrics(shared_bundle):
    """Metrics after two requests in one batch, a third that fails, and a fourth that waits."""
    metrics = Metrics()
    observer = metrics.observe(shared_bundle)
    observer.request_finished(3, 0.25, 0.5)
    observer.request_finished(1, 0.125, 0.5)
    observer.batch_finished(4, 0.5)
    observer.request_failed("queue_full", 0.0)
    observer.request_failed("deadline", 1.0)
    observer.request_failed("cancelled", 1.0)
    observer.queue_changed(7, 2)
    metrics.request_converted("colours", "1", 0.0625, 0.03125)
    return metrics


def test_tritons_metrics_hold_what_the_engine_reported(metrics):
    text = metrics.render().decode()
    assert 'nv_inference_count{model="colours",version="1"} 4.0' in text.splitlines()
    samples, types = read(text)
    expected = {
        "nv_inference_request_success": 2,
        "nv_inference_count": 4,
        "nv_inference_exec_count": 1,
        "nv_inference_pending_request_count": 2,
        "nv_inference_queue_duration_us": 375_000,
        "nv_inference_compute_infer_duration_us": 1_000_000,
        "nv_inference_compute_input_duration_us": 62_500,
        "nv_inference_compute_output_duration_us": 31_250,
        "nv_inference_request_duration_us": 375_000 + 1_000_000 + 62_500 + 31_250,
    }
    assert {name: value(samples, name, **MODEL) for name in expected} == expected
    failures = {
        reason: value(samples, "nv_inference_request_failure", reason=reason, **MODEL)
        for reason in ("REJECTED", "CANCELED", "BACKEND")
    }
    assert failures == {"REJECTED": 2, "CANCELED": 1, "BACKEND": 0}
    assert {name for name, kind in types.items() if name.startswith("nv_") and kind == "counter"} == TRITON_COUNTERS
    assert types["nv_inference_pending_request_count"] == "gauge"


def test_own_metrics_hold_the_same_in_more_detail(metrics):
    samples, _ = read(metrics.render().decode())
    assert value(samples, "cpt_serve_queued_rows", **MODEL) == 7
    assert value(samples, "cpt_serve_batch_rows_bucket", le="4.0", **MODEL) == 1
    assert value(samples, "cpt_serve_batch_rows_bucket", le="2.0", **MODEL) == 0
    assert value(samples, "cpt_serve_model_request_seconds_sum", **MODEL) == 1.375
    for reason in FAILURES:
        count = value(samples, "cpt_serve_inference_failures_total", reason=reason, **MODEL)
        assert count == (0 if reason == "error" else 1)


def test_rejections_are_counted_by_reason_from_zero_on():
    metrics = Metrics()
    before, _ = read(metrics.render().decode())
    reasons = {dict(labels)["reason"] for name, labels in before if name == "cpt_serve_rejections_total"}
    assert {"queue_full", "deadline", "too_large", "unauthenticated", "forbidden", "error", "other"} <= reasons
    for status in (200, 429, 429, 418):
        metrics.request_started()
        metrics.request_finished("/predict", "POST", status, 0.1)
    after, _ = read(metrics.render().decode())
    assert value(after, "cpt_serve_rejections_total", reason="queue_full") == 2
    assert value(after, "cpt_serve_rejections_total", reason="other") == 1
    assert sum(count for (name, _), count in after.items() if name == "cpt_serve_rejections_total") == 3


def test_no_metric_is_exposed_twice(metrics):
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("# TYPE")]
    assert len(lines) == len(set(lines))


def test_a_request_is_counted_from_its_bytes_to_its_answer(shared_bundle, connect_to, png):
    with connect_to(shared_bundle) as client:
        client.post("/predict", files=[("file", png("lime")), ("file", png("blue"))])
        client.post("/predict", content=b"no image")
        samples, _ = read(client.get("/metrics").text)
    assert value(samples, "nv_inference_request_success", **MODEL) == 1
    assert value(samples, "nv_inference_count", **MODEL) == 2
    assert value(samples, "cpt_serve_rejections_total", reason="bad_request") == 1
    parts = [
        value(samples, f"nv_inference_{part}_duration_us", **MODEL)
        for part in ("compute_input", "queue", "compute_infer", "compute_output")
    ]
    assert all(part > 0 for part in parts)
    assert math.isclose(sum(parts), value(samples, "nv_inference_request_duration_us", **MODEL), abs_tol=2)
    whole = value(samples, "cpt_serve_request_seconds_sum", route="/predict")
    assert sum(parts) < whole * 1e6
