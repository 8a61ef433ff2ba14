"""A short form of the metrics, which the page's charts read every second."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.samples import Sample
from pydantic import BaseModel, Field

PREDICTING_ROUTES = (
    "/predict",
    "/infer",
    "/generate",
    "/generate_stream",
    "/score",
    "/ModelInfer",
    "/ModelStreamInfer",
)
"""Last part of the paths of routes and calls that compute; other routes would distort the figures."""


class LatencyHistogram(BaseModel):
    """Durations of requests since the start.

    Args:
        bounds_s: Upper bounds of the buckets, in seconds.
        counts: Requests in each bucket; one more than there are bounds, for those above the last.
    """

    bounds_s: list[float]
    counts: list[int]


class Stats(BaseModel):
    """Counters since the start; rates and quantiles of a period follow from the difference of two answers."""

    clock_s: float = Field(description="time of the server's monotonic clock")
    ready: bool
    requests: int = Field(description="answered requests for predictions")
    refused: int = Field(description="of these, requests with a status of 400 or more")
    rows: int = Field(description="images computed")
    inferences: int = Field(description="calls of onnxruntime that computed them")
    in_flight: int = Field(description="requests in progress, including this one")
    latency: LatencyHistogram


def summarize(samples: Sequence[Sample], *, clock_s: float, ready: bool) -> Stats:
    """Return a short form of the metrics.

    Args:
        samples: Metrics as collected by the Prometheus client.
        clock_s: Monotonic time in seconds.
        ready: Whether the server is ready.
    """
    answered = list(_predicting(samples, "cpt_serve_requests_total"))
    return Stats(
        clock_s=clock_s,
        ready=ready,
        requests=_total(answered),
        refused=_total(sample for sample in answered if sample.labels["status"] >= "400"),
        rows=_total(_named(samples, "cpt_serve_rows_total")),
        inferences=_total(_named(samples, "cpt_serve_inference_seconds_count")),
        in_flight=_total(_named(samples, "cpt_serve_requests_in_flight")),
        latency=_histogram(_predicting(samples, "cpt_serve_request_seconds_bucket")),
    )


def _named(samples: Iterable[Sample], name: str) -> Iterator[Sample]:
    return (sample for sample in samples if sample.name == name)


def _predicting(samples: Iterable[Sample], name: str) -> Iterator[Sample]:
    return (sample for sample in _named(samples, name) if sample.labels["route"].endswith(PREDICTING_ROUTES))


def _total(samples: Iterable[Sample]) -> int:
    return int(sum(sample.value for sample in samples))


def _histogram(buckets: Iterable[Sample]) -> LatencyHistogram:
    """Sum histograms over routes; Prometheus' buckets are cumulative, these are not."""
    up_to: dict[float, float] = {}
    for bucket in buckets:
        bound = float(bucket.labels["le"])
        up_to[bound] = up_to.get(bound, 0) + bucket.value
    bounds = sorted(up_to)
    totals = [0.0, *(up_to[bound] for bound in bounds)]
    counts = [int(after - before) for before, after in itertools.pairwise(totals)]
    return LatencyHistogram(bounds_s=bounds[:-1], counts=counts)
