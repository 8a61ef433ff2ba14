"""What Prometheus reads, and the rules that give it Triton's names."""

import re
from operator import add, mul, sub
from pathlib import Path
from types import SimpleNamespace

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cpt_serving.inference.observers import FAILURES
from cpt_serving.telemetry.metrics import Metrics

MODEL = {"model": "colours", "version": "1"}
RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "triton-names.yml"


def read(text):
    """Samples by name and labels, as Prometheus' own parser has them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
    engine = SimpleNamespace(bundle=shared_bundle, queued=(7, 2), texts=0)
    metrics.show_models(lambda: [engine], lambda: True)
    metrics.request_converted("colours", "1", 0.0625, 0.03125)
    return metrics


def evaluated(node, samples):
    """A rule's value for the model, as far as the rules use PromQL."""
    match node:
        case promql_parser.NumberLiteral():
            return node.val
        case promql_parser.ParenExpr() | promql_parser.AggregateExpr():  # sums without the reasons
            return evaluated(node.expr, samples)
        case promql_parser.BinaryExpr():
            operator = {"+": add, "-": sub, "*": mul}[str(node.op)]
            return operator(evaluated(node.lhs, samples), evaluated(node.rhs, samples))
    assert isinstance(node, promql_parser.VectorSelector)
    wanted = {matcher.name: matcher.value for matcher in node.matchers.matchers}
    found = [
        value
        for (name, labels), value in samples.items()
        if name == node.name and all(re.fullmatch(wanted[key], text) for key, text in labels if key in wanted)
    ]
    assert found, node.name
    return sum(found)


def test_rules_give_prometheus_tritons_names(metrics):
    samples = read(metrics.render().decode())
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    got = {
        (rule["record"], rule.get("labels", {}).get("reason")): evaluated(promql_parser.parse(rule["expr"]), samples)
        for rule in group["rules"]
    }
    # The names of docs/user_guide/metrics.md of Triton Inference Server.
    assert got == {
        ("nv_inference_request_success", None): 2,
        ("nv_inference_request_failure", "REJECTED"): 2,
        ("nv_inference_request_failure", "CANCELED"): 1,
        ("nv_inference_request_failure", "BACKEND"): 0,
        ("nv_inference_count", None): 4,
        ("nv_inference_exec_count", None): 1,
        ("nv_inference_pending_request_count", None): 2,
        ("nv_inference_queue_duration_us", None): 375_000,
        ("nv_inference_compute_infer_duration_us", None): 1_000_000,
        ("nv_inference_compute_input_duration_us", None): 62_500,
        ("nv_inference_compute_output_duration_us", None): 31_250,
        ("nv_inference_request_duration_us", None): 375_000 + 1_000_000 + 62_500 + 31_250,
    }
    reasons = [re.findall(r"[a-z_]+(?=[|\"])", rule["expr"]) for rule in group["rules"] if "labels" in rule]
    assert sorted(reason for each in reasons for reason in each) == sorted(FAILURES)


def test_metrics_hold_what_the_engine_reported(metrics):
    samples = read(metrics.render().decode())
    assert value(samples, "cpt_serve_queued_rows", **MODEL) == 7
    assert value(samples, "cpt_serve_batch_rows_bucket", le="4.0", **MODEL) == 1
    assert value(samples, "cpt_serve_batch_rows_bucket", le="2.0", **MODEL) == 0
    assert value(samples, "cpt_serve_model_request_seconds_sum", **MODEL) == 1.375
    for reason in FAILURES:
        count = value(samples, "cpt_serve_inference_failures_total", reason=reason, **MODEL)
        assert count == (0 if reason == "error" else 1)


def test_rejections_are_counted_by_reason_from_zero_on():
    metrics = Metrics()
    before = read(metrics.render().decode())
    reasons = {dict(labels)["reason"] for name, labels in before if name == "cpt_serve_rejections_total"}
    assert {"queue_full", "deadline", "too_large", "unauthenticated", "forbidden", "error", "other"} <= reasons
    for status in (200, 429, 429, 418):
        metrics.request_started()
        metrics.request_finished("/predict", "POST", status, 0.1)
    after = read(metrics.render().decode())
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
        samples = read(client.get("/metrics").text)
    assert value(samples, "cpt_serve_rows_total", **MODEL) == 2
    assert value(samples, "cpt_serve_rejections_total", reason="bad_request") == 1
    parts = [value(samples, f"cpt_serve_{part}_seconds_sum", **MODEL) for part in ("input", "model_request", "output")]
    assert all(part > 0 for part in parts)
    assert sum(parts) < value(samples, "cpt_serve_request_seconds_sum", route="/predict")
