"""Latency of a file against that of another one."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from cpt_deploy.validation.performance.timing import interleaved, median_ratio


@dataclass(frozen=True)
class RelativeTime:
    """The latency of a file and of its float source, timed in turn.

    Args:
        milliseconds: Median of the file.
        source_milliseconds: Median of the source.
        speedup: Median over the rounds of the source's time divided by the file's.
        rounds: Number of timed calls of each.
    """

    milliseconds: float
    source_milliseconds: float
    speedup: float
    rounds: int


def relative_time(
    session: Any, source: Any, inputs: Mapping[str, npt.NDArray[Any]], seconds: float = 2.0
) -> RelativeTime:
    """Time a session against another one on the same inputs, alternating."""
    calls = {name: partial(each.run, None, dict(inputs)) for name, each in (("source", source), ("file", session))}
    timed = interleaved(calls, rounds=200, seconds=seconds)
    return RelativeTime(
        1e3 * statistics.median(timed["file"]),
        1e3 * statistics.median(timed["source"]),
        median_ratio(timed["source"], timed["file"]),
        len(timed["file"]),
    )
