"""Paired non-inferiority tests: is the served model no worse than the trained one, up to an allowed loss?

Both answer the same samples. The interval of the difference decides: the test passes if the whole interval lies below
the allowed loss, fails if the whole interval lies above it, and otherwise needs more samples. With 95 % intervals, a
bundle that loses more than allowed passes in at most one of forty validations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import atan2, ceil, cos, exp, inf, isfinite, log, log10, pi, sin, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import UsageError

CONFIDENCE = 0.95
"""Confidence of the two-sided intervals."""

MAX_DROP = 0.5
"""Default of the allowed loss: points of accuracy, or percent of perplexity."""

State = Literal["passed", "failed", "undecided"]

_STEPS = 60
_COARSE_STEPS = 12
_NORMAL_FROM = 10_000


@dataclass(frozen=True)
class NonInferiority:
    """The verdict on a paired difference: how much worse the second of two models is on the same samples.

    Args:
        state: "passed" if the loss is below `allowed`, "failed" if above, "undecided" if these samples are too few.
        loss: The observed difference; negative if the second model is better.
        low: Lower end of its interval.
        high: Upper end of its interval.
        allowed: The max allowed difference.
        samples: Number of independent pairs.
        more_samples: Approximate number of further samples like these that would decide; `None` if it is decided, or
            if no number would, since the observed difference equals the allowed one.
    """

    state: State
    loss: float
    low: float
    high: float
    allowed: float
    samples: int
    more_samples: int | None


def tango_interval(
    only_first: float, only_second: float, samples: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two proportions on the same samples.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908. Unlike the normal approximation, it keeps its level if few
    samples distinguish the two, and has a positive width if none does.

    Args:
        only_first: Samples that only the first gets right; may be fractional, to extrapolate to more samples.
        only_second: Samples that only the second gets right.
        samples: Number of all samples, at least one.
        confidence: Probability that the interval covers the true difference.

    Returns:
        Lower and upper end of (right by the first - right by the second) / samples, within -1 to 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    if min(only_first, only_second) < 0 or samples < 1 or only_first + only_second > samples:
        raise ValueError(f"Expected parts of at least one sample, but got {only_first}, {only_second} of {samples}")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence to lie between 0 and 1, but got {confidence}")
    z, observed = NormalDist().inv_cdf(0.5 + confidence / 2), (only_first - only_second) / samples

    def beyond(difference: float) -> bool:
        """Return whether a true difference above the observed one is rejected."""
        return -_score(difference, only_first, only_second, samples) > z

    def below(difference: float) -> bool:
        return _score(difference, only_first, only_second, samples) > z

    return -_boundary(lambda value: below(-value), -observed), _boundary(beyond, observed)


def _boundary(rejected: Callable[[float], bool], start: float) -> float:
    """Return the smallest rejected value above `start`, by bisection; 1 if none is rejected."""
    accepted, refused = start, 1.0
    for _ in range(_STEPS):
        middle = (accepted + refused) / 2
        if rejected(middle):
            refused = middle
        else:
            accepted = middle
    return refused


def _score(difference: float, only_first: float, only_second: float, samples: float) -> float:
    """Return the score statistic, standard normal if `difference` is the true one (Tango's eq. 6)."""
    # Maximum-likelihood share that only the second gets right, given the difference: the root of 2n q^2 + B q + C.
    b = -only_first - only_second + (2 * samples - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    share = (sqrt(max(0.0, b * b - 8 * samples * c)) - b) / (4 * samples)
    variance = samples * (2 * share + difference * (1 - difference))
    distance = only_first - only_second - samples * difference
    if variance <= 0:
        return 0.0 if distance == 0 else inf if distance > 0 else -inf
    return distance / sqrt(variance)


def judge_pairs(only_first: int, only_second: int, samples: int, allowed: float) -> NonInferiority:
    """Judge two classifiers on the same samples by Tango's interval.

    Args:
        only_first: Samples that only the first gets right.
        only_second: Samples that only the second gets right.
        samples: Number of all samples.
        allowed: The max share of samples that the second may lose.
    """

    def interval(times: float) -> tuple[float, float]:
        return tango_interval(only_first * times, only_second * times, samples * times)

    return _judge((only_first - only_second) / samples, interval, samples, allowed)


def judge_losses(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], allowed: float
) -> NonInferiority:
    """Judge two models by the mean difference of their loss, by blocks of neighbouring samples.

    Losses of neighbouring tokens are not independent, so a block is one observation (the method of batch means; A. Law,
    "Simulation Modeling and Analysis", section 9.5.3). Blocks may differ in length: the mean is the ratio of two sums,
    with the variance of a ratio estimate (W. Cochran, "Sampling Techniques", section 2.11) and Student's t.

    Args:
        first: Summed loss of the first model in each block, nats, float64 (B,).
        second: Summed loss of the second model, likewise.
        tokens: Number of tokens in each block, int64 (B,).
        allowed: The max mean rise in nats per token.

    Returns:
        The verdict, with tokens as samples.
    """
    differences, total, blocks = second - first, int(tokens.sum()), len(tokens)
    mean = float(differences.sum()) / total
    deviations = differences - mean * tokens
    error = sqrt(blocks / max(1, blocks - 1) * float((deviations**2).sum())) / total

    def interval(times: float) -> tuple[float, float]:
        freedom = int(times * blocks) - 1
        half = student_quantile(0.5 + CONFIDENCE / 2, freedom) * error / sqrt(times) if freedom else inf
        return mean - half, mean + half

    return _judge(mean, interval, total, allowed)


def _judge(
    loss: float, interval: Callable[[float], tuple[float, float]], samples: int, allowed: float
) -> NonInferiority:
    def state_at(times: float) -> State:
        low, high = interval(times)
        return "passed" if high < allowed else "failed" if low > allowed else "undecided"

    low, high = interval(1.0)
    state = state_at(1.0)
    more = _more(state_at, samples) if state == "undecided" else None
    return NonInferiority(state, loss, low, high, allowed, samples, more)


def _more(state_at: Callable[[float], State], samples: int) -> int | None:
    """Return the approximate number of further samples that would decide if the shares stay equal, to two digits."""
    enough = 2.0
    while state_at(enough) == "undecided":
        enough *= 2
        if enough > 2**20:
            return None
    few = enough / 2
    for _ in range(_COARSE_STEPS):
        middle = (few + enough) / 2
        few, enough = (middle, enough) if state_at(middle) == "undecided" else (few, middle)
    exact = samples * (enough - 1)
    digit = 10.0 ** max(0, ceil(log10(max(exact, 1.0))) - 2)
    return max(1, int(ceil(exact / digit) * digit))


def check_allowed(allowed: float) -> None:
    """Raise a `UsageError` unless an allowed loss, in points or percent, is a number of at least 0."""
    if not (isfinite(allowed) and allowed >= 0):
        raise UsageError(f"Expected max_drop to be at least 0, but got {allowed}")


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution above its median.

    Args:
        probability: At least 0.5, below 1.
        freedom: Degrees of freedom, at least 1.
    """
    if freedom >= _NORMAL_FROM:
        return NormalDist().inv_cdf(probability)
    below, above = 0.0, 1.0
    while _student_probability(above, freedom) < probability:
        below, above = above, 2 * above
    for _ in range(_STEPS):
        middle = (below + above) / 2
        below, above = (middle, above) if _student_probability(middle, freedom) < probability else (below, middle)
    return above


def _student_probability(t: float, freedom: int) -> float:
    """Return P(T <= t) for t >= 0, by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = atan2(t, sqrt(freedom))
    sine, square = sin(theta), cos(theta) ** 2
    odd = freedom % 2
    term, total = (cos(theta), 0.0) if odd else (1.0, 0.0)
    for step in range(freedom // 2 if not odd else (freedom - 1) // 2):
        total += term
        term *= square * ((2 * step + 2) / (2 * step + 3) if odd else (2 * step + 1) / (2 * step + 2))
    inside = 2 / pi * (theta + sine * total) if odd else sine * total
    return 0.5 + inside / 2


def allowed_rise(percent: float) -> float:
    """Return the rise of the mean loss, in nats per token, that raises perplexity by the given percentage."""
    return log(1 + percent / 100)


def rise_in_percent(nats: float) -> float:
    """Return the rise of perplexity in percent for a rise of the mean loss in nats per token."""
    return 100 * (exp(nats) - 1) if nats < 700 else inf
