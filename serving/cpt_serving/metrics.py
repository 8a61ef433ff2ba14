"""Prometheus metrics of the server; with several workers they are summed over all of them."""

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from cpt_deploy.bundle import Bundle

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory through which workers share their metrics."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What the server counts.

    Args:
        bundle: The served bundle; its name and version are labels.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._registry = CollectorRegistry()
        self._model = (bundle.name, bundle.version)
        model_labels = ("model", "version")
        self._requests = Counter(
            "cpt_serve_requests", "Requests answered", ("route", "method", "status"), registry=self._registry
        )
        self._request_seconds = self._seconds(
            "cpt_serve_request_seconds", "From the head of a request to the end of its answer", ("route",)
        )
        self._in_flight = Gauge(
            "cpt_serve_requests_in_flight",
            "Requests under way",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._inference_seconds = self._seconds("cpt_serve_inference_seconds", "A call of onnxruntime", model_labels)
        self._queue_seconds = self._seconds(
            "cpt_serve_queue_seconds", "How long a request waited for its turn to be computed", model_labels
        )
        self._rows = Counter("cpt_serve_rows", "Images computed", model_labels, registry=self._registry)
        info = Gauge(
            "cpt_serve_model_info",
            "Always 1; its labels say which model is served",
            (*model_labels, "sha256", "format_version"),
            registry=self._registry,
            multiprocess_mode="max",
        )
        info.labels(*self._model, bundle.sha256, str(bundle.facts["format_version"])).set(1)

    def request_started(self) -> None:
        """Count a request as under way."""
        self._in_flight.inc()

    def request_finished(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request under the template of its route."""
        self._in_flight.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def inference_finished(self, rows: int, queue_seconds: float, seconds: float) -> None:
        """Count one call of onnxruntime."""
        self._rows.labels(*self._model).inc(rows)
        self._queue_seconds.labels(*self._model).observe(queue_seconds)
        self._inference_seconds.labels(*self._model).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._shared_registry())

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as objects."""
        return self._shared_registry().collect()

    def _shared_registry(self) -> CollectorRegistry:
        """Return the registry, or with several workers one that sums over all of them."""
        if MULTIPROCESS_VARIABLE not in os.environ:
            return self._registry
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return shared

    def _seconds(self, name: str, documentation: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, documentation, labels, buckets=_SECONDS, registry=self._registry)
