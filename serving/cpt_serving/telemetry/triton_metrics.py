"""The metrics under the names that Triton has for them, so that its dashboards and autoscalers work unchanged.

They are derived from our own when somebody looks, so that requests pay for one set only. Names and meanings are those
of https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
"""

from collections.abc import Iterable, Mapping

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from cpt_serving.inference.observers import CANCELLED, DEADLINE, ERROR, QUEUE_FULL

_MICROSECONDS = 1e6

_Parts = tuple[tuple[int, str], ...]
"""Names of our own metrics, and whether they are added or subtracted."""

_INPUT: _Parts = ((1, "cpt_serve_input_seconds_sum"),)
_QUEUE: _Parts = ((1, "cpt_serve_queue_seconds_sum"),)
_QUEUE_AND_COMPUTE: _Parts = ((1, "cpt_serve_model_request_seconds_sum"),)
_OUTPUT: _Parts = ((1, "cpt_serve_output_seconds_sum"),)

_COUNTS: dict[str, tuple[str, _Parts]] = {
    "nv_inference_request_success": ("Inference requests that succeeded", ((1, "cpt_serve_queue_seconds_count"),)),
    "nv_inference_count": ("Inferences performed, one for each row", ((1, "cpt_serve_rows_total"),)),
    "nv_inference_exec_count": ("Executions of the model", ((1, "cpt_serve_inference_seconds_count"),)),
}
_DURATIONS: dict[str, tuple[str, _Parts]] = {
    "nv_inference_request_duration_us": ("Time of requests", (*_QUEUE_AND_COMPUTE, *_INPUT, *_OUTPUT)),
    "nv_inference_queue_duration_us": ("Time of requests in the queue", _QUEUE),
    "nv_inference_compute_input_duration_us": ("Time to read inputs", _INPUT),
    "nv_inference_compute_infer_duration_us": (
        "Time of requests in the model",
        (*_QUEUE_AND_COMPUTE, *((-sign, name) for sign, name in _QUEUE)),
    ),
    "nv_inference_compute_output_duration_us": ("Time to write outputs", _OUTPUT),
}
_REASONS = {QUEUE_FULL: "REJECTED", DEADLINE: "REJECTED", CANCELLED: "CANCELED", ERROR: "BACKEND"}

_Labels = tuple[tuple[str, str], ...]
_Totals = Mapping[str, Mapping[_Labels, float]]


def render_triton_metrics(families: Iterable[Metric]) -> bytes:
    """Return the metrics in Prometheus' text format.

    Args:
        families: Our own metrics.
    """
    text = generate_latest(_Collected(_translate(_totals(families))))
    # The client library writes counters only with names that end in _total, and Triton's do not.
    return text.replace(b" untyped\n", b" counter\n")


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _totals(families: Iterable[Metric]) -> _Totals:
    totals: dict[str, dict[_Labels, float]] = {}
    for family in families:
        for sample in family.samples:
            if "model" in sample.labels and "le" not in sample.labels:
                totals.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return totals


def _translate(totals: _Totals) -> list[Metric]:
    metrics = [_sum(totals, name, *meaning, unit=1) for name, meaning in _COUNTS.items()]
    metrics.append(_failures(totals))
    pending = Metric("nv_inference_pending_request_count", "Requests that wait to be executed", "gauge")
    for labels, value in totals.get("cpt_serve_queued_requests", {}).items():
        pending.add_sample(pending.name, dict(labels), value)
    metrics.append(pending)
    return metrics + [_sum(totals, name, *meaning, unit=_MICROSECONDS) for name, meaning in _DURATIONS.items()]


def _sum(totals: _Totals, name: str, documentation: str, parts: _Parts, *, unit: float) -> Metric:
    metric = Metric(name, documentation + (", cumulative, in microseconds" if unit > 1 else ""), "unknown")
    for labels in totals.get(parts[0][1], {}):
        value = sum(sign * totals.get(source, {}).get(labels, 0.0) for sign, source in parts)
        metric.add_sample(name, dict(labels), round(unit * value))
    return metric


def _failures(totals: _Totals) -> Metric:
    metric = Metric("nv_inference_request_failure", "Number of failed inference requests, by reason", "unknown")
    summed: dict[_Labels, float] = {}
    for labels, value in totals.get("cpt_serve_inference_failures_total", {}).items():
        named = dict(labels)
        named["reason"] = _REASONS.get(named["reason"], "OTHER")
        key = tuple(sorted(named.items()))
        summed[key] = summed.get(key, 0.0) + value
    for key, value in summed.items():
        metric.add_sample(metric.name, dict(key), value)
    return metric
