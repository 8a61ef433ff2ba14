"""Paired differences of runs: mean and interval of Student's t, and Holm's correction for many comparisons."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences; positive is better.

    Attributes:
        seeds: Number of pairs.
        mean: Their mean.
        error: Standard error of the mean.
        half: Half of the 95 % interval.
        p: Two-sided p value of Student's t.
    """

    seeds: int
    mean: float
    error: float
    half: float
    p: float


def mean_difference(differences: Sequence[float]) -> Difference:
    """Return the mean of two or more paired differences."""
    from scipy.stats import t as student

    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    half = float(student.ppf(0.975, freedom)) * error
    p = 2 * float(student.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(len(differences), mean, error, half, p)


def corrected(differences: Mapping[Any, Difference], planned: int = 0) -> dict[Any, float]:
    """Return the p value of each comparison after Holm's correction.

    Args:
        differences: The comparisons that there are.
        planned: Number of all comparisons; missing ones count as if their p values were the highest.
    """
    result, highest = {}, 0.0
    ordered = sorted(differences, key=lambda cell: differences[cell].p)
    number = max(planned, len(ordered))
    for place, cell in enumerate(ordered):
        highest = max(highest, min(1.0, (number - place) * differences[cell].p))
        result[cell] = highest
    return result
