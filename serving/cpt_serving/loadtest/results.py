"""What a load test measures: latencies of answers, and errors by kind."""

import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class LevelResult:
    """What one number of clients got from a server.

    Args:
        clients: How many asked at the same time.
        rows: Images or rows in a request.
        duration_s: Seconds that were measured.
        latencies_s: Seconds of each good answer, in the order of their arrival.
        errors: How many requests failed, by kind.
        messages: What the server said at the first failure of a kind, if it said something.
        complete: Whether all that was planned was measured.
    """

    clients: int
    rows: int
    duration_s: float
    latencies_s: Sequence[float]
    errors: dict[str, int]
    messages: dict[str, str]
    complete: bool

    @property
    def requests(self) -> int:
        """How many requests got a good answer."""
        return len(self.latencies_s)

    @property
    def requests_per_s(self) -> float:
        """Good answers in a second."""
        return self.requests / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def rows_per_s(self) -> float:
        """Images or rows answered in a second."""
        return self.requests_per_s * self.rows

    def latency_ms(self, share: float) -> float | None:
        """Return a quantile of the latencies in milliseconds: the least that this share of them does not exceed.

        Args:
            share: 0.5 for the median, 1 for the greatest.
        """
        if not self.latencies_s:
            return None
        return float(np.quantile(np.asarray(self.latencies_s), share, method="inverted_cdf")) * 1e3

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        quantiles = {f"p{share * 100:g}_ms": self.latency_ms(share) for share in QUANTILES}
        return {
            "clients": self.clients,
            "rows_per_request": self.rows,
            "duration_s": self.duration_s,
            "requests": self.requests,
            "requests_per_s": self.requests_per_s,
            "rows_per_s": self.rows_per_s,
            **quantiles,
            "max_ms": self.latency_ms(1.0),
            "errors": self.errors,
            "messages": self.messages,
            "complete": self.complete,
        }


@dataclass(slots=True)
class Recorder:
    """Collects answers while they are counted.

    Args:
        limit: Requests to count; `None` counts until it is stopped.
    """

    limit: int | None = None
    counting: bool = False
    stopped: bool = False
    latencies_s: "array[float]" = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    finished: int = 0
    finished_at: float | None = None

    def answered(self, seconds: float) -> None:
        """Count a good answer."""
        if self._counts():
            self.latencies_s.append(seconds)

    def failed(self, kind: str, message: str = "") -> None:
        """Count a failure."""
        if message:
            self.messages.setdefault(kind, message)
        if self._counts():
            self.errors[kind] += 1

    def _counts(self) -> bool:
        if not self.counting or self.stopped:
            return False
        self.finished += 1
        if self.limit is not None and self.finished >= self.limit:
            self.stopped, self.finished_at = True, time.perf_counter()
        return True
