"""Confidence intervals of accuracies, and tests whether two differ: Wilson's interval and McNemar's exact test."""

from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Proportion:
    """A share of successes with its confidence interval.

    Args:
        successes: Number of successes.
        trials: Number of trials, at least 1.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The observed share, 0..1."""
        return self.successes / self.trials


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Proportion:
    """Return a share of successes with Wilson's score interval (E. B. Wilson, 1927).

    Unlike the normal approximation it stays within 0..1 and has a positive width if all or none succeeded.

    Args:
        successes: Number of successes, 0 to `trials`.
        trials: Number of trials, at least 1.
        confidence: Probability that the interval covers the true share.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"Expected 0 <= successes <= trials and a trial, but got {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected confidence to lie between 0 and 1, but got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    # At the ends the bound is exactly 0 or 1, which rounding could miss.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Proportion(successes, trials, low, high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for two classifiers on the same samples.

    Under the null hypothesis a sample that only one of them gets right is equally likely to be the first's or the
    second's: `p = min(1, 2 P(X <= min(b, c)))`, `X ~ Binomial(b + c, 1/2)`.

    Args:
        only_first: Samples that only the first classifier gets right.
        only_second: Samples that only the second one gets right.

    Raises:
        ValueError: If a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"Expected counts of at least 0, but got {only_first} and {only_second}")
    discordant = only_first + only_second
    # Python divides integers of any length to a correctly rounded float, so nothing overflows or cancels.
    outcomes = tail = 1
    for count in range(1, min(only_first, only_second) + 1):
        outcomes = outcomes * (discordant - count + 1) // count  # a binomial coefficient from the one before
        tail += outcomes
    all_outcomes: int = 2**discordant
    return min(1.0, 2 * tail / all_outcomes)


def recorded_loss(recorded: float, samples: int, served: Proportion) -> tuple[float, float]:
    """Return the interval of the loss against a recorded share, without the answers to single samples.

    R. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Statistics in Medicine 17 (1998), 873-890, method 10. Answers to the same samples agree more than by
    chance, so the interval is wider than that of pairs.

    Args:
        recorded: Share of right answers of the trained model.
        samples: Number of samples that it was measured on.
        served: The same of the served model.
    """
    before = wilson_interval(round(recorded * samples), samples)
    loss = before.value - served.value
    low = loss - hypot(before.value - before.low, served.high - served.value)
    high = loss + hypot(before.high - before.value, served.value - served.low)
    return low, high
