"""Prometheus metrics of the server, the one place where anything is counted."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from cpt_deploy.bundle import Bundle
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.observers import FAILURES, ModelObserver

WATCH_MODELS, WATCH_CERTIFICATE = "watch-models", "watch-certificate"
"""The background tasks of a server."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_MODEL = ("model", "version")
_PRESENT = {
    "queued_rows": "Rows that are read or wait for their turn",
    "queued_requests": "Requests that are read or wait for their turn",
    "texts_in_flight": "Texts that are generated or scored",
}
"""Gauges of the engines, read when they are scraped."""

_FIRST_ERROR = 400
_REJECTIONS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "wrong_method",
    408: "slow_body",
    413: "too_large",
    415: "unsupported_type",
    422: "bad_parameter",
    429: "queue_full",
    499: "client_gone",
    500: "error",
    503: "unavailable",
    504: "deadline",
}


class Metrics:
    """The metrics of a server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "cpt_serve_requests", "Requests answered", ("route", "method", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "cpt_serve_request_seconds",
            "From the head of a request to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        # Cached, because looking labels up takes longer than counting.
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._in_flight = 0
        Gauge("cpt_serve_requests_in_flight", "Requests under way", registry=registry).set_function(
            lambda: self._in_flight
        )
        self._rejections = _zeroed(
            Counter(
                "cpt_serve_rejections", "Requests answered with an error, by reason", ("reason",), registry=registry
            ),
            (*_REJECTIONS.values(), "other"),
        )
        self._background_restarts = _zeroed(
            Counter(
                "cpt_serve_background_restarts",
                "Background tasks that ended and began again",
                ("task",),
                registry=registry,
            ),
            (WATCH_MODELS, WATCH_CERTIFICATE),
        )
        self._dropped_lines = _zeroed(
            Counter(
                "cpt_serve_log_lines_dropped", "Lines left out, as writing was too slow", ("log",), registry=registry
            ),
            ("access", "server"),
        )
        self._refused = Counter(
            "cpt_serve_connections_refused", "Connections refused, as too many were open", registry=registry
        )
        self._of_models = _ModelFamilies(registry)
        self._models: dict[tuple[str, str], ModelMetrics] = {}

    def show_models(self, served: Callable[[], Iterable[Engine[Any]]], looked: Callable[[], bool]) -> None:
        """Register the metrics of the served models.

        Args:
            served: Returns the engines that answer now.
            looked: Returns whether the last check of the models succeeded.
        """
        self._registry.register(_ServedModels(served, looked))

    def background_restarted(self, task: str) -> None:
        """Count a background task that ended."""
        self._background_restarts.labels(task).inc()

    def access_line_dropped(self) -> None:
        """Count an answered request that the access log left out."""
        self._dropped_lines.labels("access").inc()

    def server_line_dropped(self) -> None:
        """Count a line that the server log left out."""
        self._dropped_lines.labels("server").inc()

    def connection_refused(self) -> None:
        """Count a connection refused because too many were open."""
        self._refused.inc()

    def request_started(self) -> None:
        """Count a request in progress."""
        self._in_flight += 1

    def request_finished(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request under the template of its route."""
        self._in_flight -= 1
        key = (route, method, status)
        if key not in self._answers:
            self._answers[key] = (
                self._requests.labels(route, method, str(status)), self._request_seconds.labels(route),
            )  # fmt: skip
        count, duration = self._answers[key]
        count.inc()
        duration.observe(seconds)
        if status >= _FIRST_ERROR:
            self._rejections.labels(_REJECTIONS.get(status, "other")).inc()

    def request_converted(self, model: str, version: str, input_s: float, output_s: float) -> None:
        """Record the seconds from a request's body to its rows, and from its outputs to its answer."""
        metrics = self.of_model(model, version)
        metrics.input_seconds.observe(input_s)
        metrics.output_seconds.observe(output_s)

    def observe(self, bundle: Bundle) -> ModelObserver:
        """Return the observer that counts the inferences and texts of a model version."""
        return self.of_model(bundle.name, bundle.version)

    def of_model(self, name: str, version: str) -> "ModelMetrics":
        """Return the metrics of a model version; they continue when it is reloaded."""
        found = self._models.get((name, version))
        return found or self._models.setdefault((name, version), ModelMetrics(self._of_models, name, version))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def samples(self) -> list[Sample]:
        """Return all metrics as samples."""
        return [sample for family in self._registry.collect() for sample in family.samples]


def _zeroed(counter: Counter, labels: Iterable[str]) -> Counter:
    """Return a counter that shows its labels from the start: a rate needs the zero before the first count."""
    for label in labels:
        counter.labels(label)
    return counter


class _ServedModels(Collector):
    """Collector of the models that are served at the time of the scrape."""

    def __init__(self, served: Callable[[], Iterable[Engine[Any]]], looked: Callable[[], bool]) -> None:
        self._served = served
        self._looked = looked

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "cpt_serve_model_info",
            "1 for each model that is served; its labels say which",
            labels=(*_MODEL, "sha256", "format_version"),
        )
        rows, requests, texts = (
            GaugeMetricFamily(f"cpt_serve_{name}", documentation, labels=_MODEL)
            for name, documentation in _PRESENT.items()
        )
        for engine in self._served():
            bundle, model = engine.bundle, (engine.bundle.name, engine.bundle.version)
            info.add_metric((*model, bundle.sha256, str(bundle.facts.get("format_version", "none"))), 1)
            for family, value in zip((rows, requests, texts), (*engine.queued, engine.texts), strict=True):
                family.add_metric(model, value)
        yield from (info, rows, requests, texts)
        yield GaugeMetricFamily(
            "cpt_serve_models_readable",
            "Whether the models were there at the last look; if not, those that were loaded are served on",
            value=float(self._looked()),
        )


class _ModelFamilies:
    """The metrics with labels of a model version.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, documentation: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"cpt_serve_{name}", documentation, _MODEL, buckets=buckets, registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"cpt_serve_{name}", documentation, (*_MODEL, *labels), registry=registry)

        self.inference_seconds = histogram("inference_seconds", "A call of onnxruntime")
        self.queue_seconds = histogram("queue_seconds", "How long a request waited for its turn to be computed")
        self.request_seconds = histogram("model_request_seconds", "From a request's arrival in the queue to its logits")
        self.input_seconds = histogram(
            "input_seconds", "From a request's last byte to its rows: parsing, decoding, resizing"
        )
        self.output_seconds = histogram("output_seconds", "From a request's logits to the first byte of its answer")
        self.batch_rows = histogram("batch_rows", "Images computed together", _ROWS)
        self.rows = counter("rows", "Images computed")
        self.failures = counter(
            "inference_failures", "Requests that got no logits: queue_full, deadline, cancelled or error", "reason"
        )
        self.failure_seconds = counter("inference_failure_seconds", "How long requests took that got no logits")
        last = "cpt_serve_last_inference_timestamp_seconds"
        self.last_inference = Gauge(last, "When a request last got its outputs", _MODEL, registry=registry)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts and scored texts")
        self.generated_tokens = counter("generated_tokens", "Tokens generated")
        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first generated token"
        )
        self.token_seconds = histogram("time_per_output_token_seconds", "From a generated token to the next")
        self.tokens_per_second = histogram(
            "tokens_per_second", "Tokens a second of a finished text, after its first token", _RATES
        )


class ModelMetrics(ModelObserver):
    """The metrics of one model version.

    Args:
        families: Metrics of all model versions.
        name: Name of the model.
        version: Version of the model.
    """

    def __init__(self, families: _ModelFamilies, name: str, version: str) -> None:
        model = (name, version)
        self.input_seconds = families.input_seconds.labels(*model)
        self.output_seconds = families.output_seconds.labels(*model)
        self._inference_seconds = families.inference_seconds.labels(*model)
        self._queue_seconds = families.queue_seconds.labels(*model)
        self._request_seconds = families.request_seconds.labels(*model)
        self._batch_rows = families.batch_rows.labels(*model)
        self._rows = families.rows.labels(*model)
        self._failures = {reason: families.failures.labels(*model, reason) for reason in FAILURES}
        self._failure_seconds = families.failure_seconds.labels(*model)
        self._last_inference = 0.0
        families.last_inference.labels(*model).set_function(lambda: self._last_inference)
        # Metrics of texts are created with the first text, because most models have none.
        self._families, self._model = families, model

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """Record the wait and the duration of a request."""
        self._queue_seconds.observe(queue_s)
        self._request_seconds.observe(queue_s + compute_s)
        self._last_inference = time.time()

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """Record a call of onnxruntime."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._inference_seconds.observe(compute_s)

    def request_failed(self, reason: str, seconds: float) -> None:
        """Count a request without outputs."""
        self._failures[reason].inc()
        self._failure_seconds.inc(seconds)

    def text_read(self, tokens: int) -> None:
        """Count tokens sent by clients."""
        self._families.prompt_tokens.labels(*self._model).inc(tokens)

    def first_token(self, seconds: float) -> None:
        """Count a text's first token and record its time."""
        self._families.generated_tokens.labels(*self._model).inc()
        self._families.first_token_seconds.labels(*self._model).observe(seconds)

    def next_token(self, seconds: float) -> None:
        """Count a further token and record its time."""
        self._families.generated_tokens.labels(*self._model).inc()
        self._families.token_seconds.labels(*self._model).observe(seconds)

    def text_finished(self, tokens: int, seconds: float) -> None:
        """Record the speed of a text; a single token has none."""
        if tokens > 1 and seconds > 0:
            self._families.tokens_per_second.labels(*self._model).observe((tokens - 1) / seconds)
