"""Prometheus metrics of the server."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_serving.inference.observers import FAILURES, GenerationObserver, InferenceObserver
from cpt_serving.telemetry.generation_metrics import GenerationMetrics

WATCH_MODELS, WATCH_CERTIFICATE = "watch-models", "watch-certificate"
"""The background tasks of a server."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")
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
    """What the server counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cpt_serve_requests", "Requests answered", ("route", "method", "status"), registry=self._registry
        )
        self._request_seconds = self._histogram(
            "cpt_serve_request_seconds", "From the head of a request to the end of its answer", ("route",)
        )
        # Looking labels up takes longer than counting.
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._in_flight = self._gauge("cpt_serve_requests_in_flight", "Requests under way", ())
        self.inference_seconds = self._histogram("cpt_serve_inference_seconds", "A call of onnxruntime", _MODEL)
        self.queue_seconds = self._histogram(
            "cpt_serve_queue_seconds", "How long a request waited for its turn to be computed", _MODEL
        )
        self.model_request_seconds = self._histogram(
            "cpt_serve_model_request_seconds", "From a request's arrival in the queue to its logits", _MODEL
        )
        self._input_seconds = self._histogram(
            "cpt_serve_input_seconds", "From a request's last byte to its rows: parsing, decoding, resizing", _MODEL
        )
        self._output_seconds = self._histogram(
            "cpt_serve_output_seconds", "From a request's logits to the first byte of its answer", _MODEL
        )
        self._conversions: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}
        self.batch_rows = self._histogram("cpt_serve_batch_rows", "Images computed together", _MODEL, _ROWS)
        self.rows = Counter("cpt_serve_rows", "Images computed", _MODEL, registry=self._registry)
        self.queued_rows = self._gauge("cpt_serve_queued_rows", "Rows that are read or wait for their turn", _MODEL)
        self.queued_requests = self._gauge(
            "cpt_serve_queued_requests", "Requests that are read or wait for their turn", _MODEL
        )
        self._rejections = Counter(
            "cpt_serve_rejections", "Requests answered with an error, by reason", ("reason",), registry=self._registry
        )
        for reason in (*_REJECTIONS.values(), "other"):
            self._rejections.labels(reason)  # A rate needs the zero before the first one.
        self.failures = Counter(
            "cpt_serve_inference_failures",
            "Requests that got no logits: queue_full, deadline, cancelled or error",
            (*_MODEL, "reason"),
            registry=self._registry,
        )
        self._generation = GenerationMetrics(self._registry)
        self._background_restarts = Counter(
            "cpt_serve_background_restarts",
            "Background tasks that ended and began again",
            ("task",),
            registry=self._registry,
        )
        for task in (WATCH_MODELS, WATCH_CERTIFICATE):
            self._background_restarts.labels(task)
        self._dropped_lines = Counter(
            "cpt_serve_log_lines_dropped", "Lines left out, as writing was too slow", ("log",), registry=self._registry
        )
        for log in ("access", "server"):
            self._dropped_lines.labels(log)
        self._refused = Counter(
            "cpt_serve_connections_refused", "Connections refused, as too many were open", registry=self._registry
        )

    def show_models(self, served: Callable[[], Iterable[OpenedBundle]], looked: Callable[[], bool]) -> None:
        """Show which models are served.

        Args:
            served: Returns the bundles that are served now.
            looked: Returns whether the last look at the models could be taken.
        """
        self._registry.register(_ServedModels(served, looked))

    def background_restarted(self, task: str) -> None:
        """Count a background task that ended."""
        self._background_restarts.labels(task).inc()

    def access_line_dropped(self) -> None:
        """Count an answered request that the access log left out."""
        self._dropped_lines.labels("access").inc()

    def server_line_dropped(self) -> None:
        """Count a line that the server's log left out."""
        self._dropped_lines.labels("server").inc()

    def connection_refused(self) -> None:
        """Count a connection that was one too many."""
        self._refused.inc()

    def observe_texts(self, bundle: OpenedBundle) -> GenerationObserver:
        """Return what counts the texts of a language model."""
        return self._generation.observe(bundle.name, bundle.version)

    def request_started(self) -> None:
        """Count a request as under way."""
        self._in_flight.inc()

    def request_finished(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request under the template of its route."""
        self._in_flight.dec()
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
        """Count what it took to turn a request into rows, and its logits into an answer, in seconds."""
        key = (model, version)
        if key not in self._conversions:
            self._conversions[key] = (self._input_seconds.labels(*key), self._output_seconds.labels(*key))
        of_input, of_output = self._conversions[key]
        of_input.observe(input_s)
        of_output.observe(output_s)

    def observe(self, bundle: OpenedBundle) -> InferenceObserver:
        """Return what counts the inferences of a model version."""
        return ModelMetrics(self, bundle.name, bundle.version)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as objects."""
        return self._registry.collect()

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, documentation: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, documentation, labels, registry=self._registry)


class _ServedModels(Collector):
    """Which models are served at the moment that Prometheus asks."""

    def __init__(self, served: Callable[[], Iterable[OpenedBundle]], looked: Callable[[], bool]) -> None:
        self._served = served
        self._looked = looked

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "cpt_serve_model_info",
            "1 for each model that is served; its labels say which",
            labels=(*_MODEL, "sha256", "format_version"),
        )
        for bundle in self._served():
            info.add_metric((bundle.name, bundle.version, bundle.sha256, str(bundle.facts["format_version"])), 1)
        yield info
        yield GaugeMetricFamily(
            "cpt_serve_models_readable",
            "Whether the models were there at the last look; if not, those that were loaded are served on",
            value=float(self._looked()),
        )


class ModelMetrics:
    """The metrics of one model version, an `InferenceObserver`.

    Args:
        metrics: The server's.
        name: Name of the model.
        version: Its version.
    """

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._inference_seconds = metrics.inference_seconds.labels(name, version)
        self._queue_seconds = metrics.queue_seconds.labels(name, version)
        self._request_seconds = metrics.model_request_seconds.labels(name, version)
        self._batch_rows = metrics.batch_rows.labels(name, version)
        self._rows = metrics.rows.labels(name, version)
        self._queued_rows = metrics.queued_rows.labels(name, version)
        self._queued_requests = metrics.queued_requests.labels(name, version)
        self._failures = {reason: metrics.failures.labels(name, version, reason) for reason in FAILURES}

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """Count how long a request waited, and how long it took."""
        self._queue_seconds.observe(queue_s)
        self._request_seconds.observe(queue_s + compute_s)

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """Count a call of onnxruntime."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._inference_seconds.observe(compute_s)

    def request_failed(self, reason: str, seconds: float) -> None:
        """Count a request that got no logits."""
        self._failures[reason].inc()

    def queue_changed(self, rows: int, requests: int) -> None:
        """Show how much waits."""
        self._queued_rows.set(rows)
        self._queued_requests.set(requests)
