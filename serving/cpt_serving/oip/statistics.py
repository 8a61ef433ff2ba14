"""The statistics extension: the metrics of models in Triton's form, in nanoseconds."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.samples import Sample

from cpt_serving.oip.schemas import InferStatistics, ModelStatistics, StatisticDuration, StatisticsAnswer

Key = tuple[str, str]
"""Name and version of a model."""


def statistics_of(samples: Iterable[Sample], models: Iterable[Key]) -> StatisticsAnswer:
    """Return the statistics of models since the start of the server.

    Args:
        samples: Metrics of the server.
        models: Names and versions of the models.
    """
    values: Counter[tuple[str, Key]] = Counter()
    for sample in samples:
        key = (sample.labels.get("model", ""), sample.labels.get("version", ""))
        values[sample.name.removeprefix("cpt_serve_"), key] += sample.value  # type: ignore[assignment]

    def duration(name: str, key: Key) -> StatisticDuration:
        return _duration(values[f"{name}_seconds_count", key], values[f"{name}_seconds_sum", key])

    def statistics(key: Key) -> ModelStatistics:
        success, queue = duration("model_request", key), duration("queue", key)
        return ModelStatistics(
            name=key[0],
            version=key[1],
            last_inference=round(values["last_inference_timestamp_seconds", key] * 1e3),
            inference_count=round(values["rows_total", key]),
            execution_count=round(values["inference_seconds_count", key]),
            inference_stats=InferStatistics(
                success=success,
                fail=_duration(values["inference_failures_total", key], values["inference_failure_seconds_total", key]),
                queue=queue,
                compute_input=duration("input", key),
                compute_infer=StatisticDuration(count=success.count, ns=success.ns - queue.ns),
                compute_output=duration("output", key),
            ),
        )

    return StatisticsAnswer(model_stats=[statistics(key) for key in models])


def _duration(count: float, seconds: float) -> StatisticDuration:
    return StatisticDuration(count=round(count), ns=round(seconds * 1e9))
