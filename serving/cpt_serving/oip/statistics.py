"""What the statistics extension tells of a model: how many requests, rows and executions, and how long they took."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cpt_deploy.bundle.opened import OpenedBundle


@dataclass(slots=True)
class Duration:
    """How often something happened and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def render(self) -> dict[str, int]:
        """Return the protocol's form."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelStatistics:
    """The statistics of one version of a model since it was loaded; an observer of its engine."""

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    input: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    batches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """Count a request that got its logits.

        Args:
            rows: How many rows it had.
            queue_s: Seconds that it waited.
            compute_s: Seconds of the executions that it took part in.
        """
        self.inference_count += rows
        self.success.add(queue_s + compute_s)
        self.queue.add(queue_s)
        self.compute.add(compute_s)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """Count an execution of so many rows, of one request or several."""
        self.execution_count += 1
        self.batches[rows].add(compute_s)

    def request_failed(self, reason: str, seconds: float) -> None:
        """Count a request that got none, after so many seconds."""
        self.fail.add(seconds)

    def queue_changed(self, rows: int, requests: int) -> None:
        """The protocol does not tell how many rows are waiting."""

    def request_converted(self, input_s: float, output_s: float) -> None:
        """Count what it took to turn a request into rows, and logits into its answer."""
        self.input.add(input_s)
        self.output.add(output_s)

    def render(self, name: str, version: str) -> dict[str, Any]:
        """Return the protocol's form, in nanoseconds."""
        nothing = Duration().render()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success.render(),
                "fail": self.fail.render(),
                "queue": self.queue.render(),
                "compute_input": self.input.render(),
                "compute_infer": self.compute.render(),
                "compute_output": self.output.render(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": nothing,
                    "compute_infer": duration.render(),
                    "compute_output": nothing,
                }
                for rows, duration in sorted(self.batches.items())
            ],
        }


class StatisticsRegistry:
    """The statistics of every version that was served, kept when it is loaded again."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelStatistics] = {}

    def observe(self, bundle: OpenedBundle) -> ModelStatistics:
        """Return the statistics of a bundle's model, to be told about its inferences."""
        key = (bundle.name, bundle.version)
        known = self._models.get(key)
        return self._models.setdefault(key, ModelStatistics()) if known is None else known

    def render(self, models: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Return the protocol's form for some names and versions."""
        return {"model_stats": [self._models.get(key, ModelStatistics()).render(*key) for key in models]}
