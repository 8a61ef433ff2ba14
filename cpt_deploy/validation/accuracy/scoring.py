"""How outputs are scored against targets, and how the scores of two models on the same samples are compared.

A task has one of `Accuracy`, `Perplexity` and `RSquared`, or derives from `Scoring`.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from math import exp, inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import DataError
from cpt_deploy.metric import ACCURACY, PERPLEXITY, R_SQUARED, Metric
from cpt_deploy.signature import OUTPUT_NAME
from cpt_deploy.validation.accuracy.noninferiority import (
    MAX_DROP,
    NonInferiority,
    allowed_rise,
    judge_losses,
    judge_pairs,
    rise_in_percent,
)
from cpt_deploy.validation.accuracy.samples import Arrays, Scores
from cpt_deploy.validation.accuracy.statistics import mcnemar_exact, recorded_loss, wilson_interval

if TYPE_CHECKING:
    from cpt_deploy.validation.accuracy.agreement import Agreement

BLOCK_BATCHES = 4
"""Number of consecutive batches of a row that count as one observation, since neighbouring scores depend."""

RECORDED_POINTS, RECORDED_SAMPLES = 0.5, 2
"""Points, or samples if that is more, by which a second measurement of a trained model may differ from the first.

Another device or batch size sums floats in another order, which changes some quantized values and with them a few
answers.
"""


class Scoring(ABC):
    """Scores the outputs of a model sample by sample.

    Attributes:
        metric: The metric that the scores give.
        unit: Unit of a drop from one model to another: "points", "%".
        output: Name of the scored output.
        has_classes: Whether `answers` are classes, whose confusions are shown.
        agreement: Agreement of each served output with a float model's; None if the metric alone is measured.
    """

    metric: Metric
    unit: str
    output: str
    has_classes = False
    agreement: "Agreement | None" = None

    @abstractmethod
    def scores(self, outputs: Arrays, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the score of each sample of a batch, float64 (N, ...)."""

    @abstractmethod
    def value(self, scores: Scores) -> float:
        """Return the metric of scores."""

    @abstractmethod
    def judge(self, trained: Scores, served: Scores, allowed: float) -> NonInferiority:
        """Judge by a paired test whether the second model is worse than the first, by at most `allowed` units."""

    def interval(self, scores: Scores) -> tuple[float, float] | None:
        """Return the 95 % interval of the metric; `None` if it has none."""
        return None

    def answers(self, outputs: Arrays) -> npt.NDArray[np.int64] | None:
        """Return the answer to each sample of a batch, int64 (N, ...); `None` if outputs are no choice."""
        return None

    def compare(self, first: Scores, second: Scores) -> dict[str, float]:
        """Return further figures of two models on the same samples, as JSON types."""
        return {}

    def see(self, served: Arrays, targets: npt.NDArray[Any]) -> None:  # noqa: B027  most tasks have nothing to add
        """Receive the served outputs of a batch, for figures besides the metric."""

    def remeasured_differs(self, recorded: float, measured: float, samples: int) -> bool:
        """Return whether two measurements of one model differ by more than another order of sums explains."""
        return not abs(measured - recorded) <= RECORDED_POINTS / 100 * max(abs(recorded), 1e-9)

    def certain_loss(self, recorded: float, samples: int, served: Scores) -> tuple[float, float] | None:
        """Return the interval of the drop, in units, from a recorded metric of the same samples, if it is certain.

        `None` if the drop may be within `MAX_DROP`, or the scores of single samples are needed to know.
        """
        return None


class Accuracy(Scoring):
    """Shares of right answers; the score is 1 for a right answer, else 0.

    Args:
        output: Name of the output whose last dimension has a score for each class, (N, K).
    """

    metric, unit, has_classes = ACCURACY, "points", True

    def __init__(self, output: str = OUTPUT_NAME) -> None:
        self.output = output

    def scores(self, outputs: Arrays, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return whether the most probable class is the target's, as 0 or 1, float64 (N,)."""
        right: npt.NDArray[np.float64] = (self.answers(outputs) == targets).astype(np.float64)
        return right

    def value(self, scores: Scores) -> float:
        """Return the share of right answers."""
        return float(scores.flat().mean())

    def interval(self, scores: Scores) -> tuple[float, float]:
        """Return Wilson's interval."""
        found = wilson_interval(int(scores.flat().sum()), scores.count)
        return found.low, found.high

    def judge(self, trained: Scores, served: Scores, allowed: float) -> NonInferiority:
        """Judge the share of lost answers by Tango's interval, in points."""
        only_first, only_second = _discordant(trained, served)
        return _in_units(judge_pairs(only_first, only_second, served.count, allowed / 100), lambda share: 100 * share)

    def answers(self, outputs: Arrays) -> npt.NDArray[np.int64]:
        """Return the most probable class of each sample, int64 (N,)."""
        answers: npt.NDArray[np.int64] = outputs[self.output].argmax(axis=-1)
        return answers

    def compare(self, first: Scores, second: Scores) -> dict[str, float]:
        """Return the answers that only one gets right, and the p-value of McNemar's test that both are as good."""
        one, other = _discordant(first, second)
        return {"only_first_right": one, "only_second_right": other, "p_value": mcnemar_exact(one, other)}

    def remeasured_differs(self, recorded: float, measured: float, samples: int) -> bool:
        """See `Scoring`; a few answers may differ."""
        return not abs(recorded - measured) <= max(RECORDED_POINTS / 100, (RECORDED_SAMPLES + 0.5) / samples)

    def certain_loss(self, recorded: float, samples: int, served: Scores) -> tuple[float, float] | None:
        """See `Scoring`; by Newcombe's interval of two independent shares."""
        found = wilson_interval(int(served.flat().sum()), served.count)
        low, high = (100 * bound for bound in recorded_loss(recorded, samples, found))
        return (low, high) if low > MAX_DROP else None


class Perplexity(Scoring):
    """Exp of the mean negative log-likelihood; the score is that of a token, in nats.

    Args:
        output: Name of the output with the logits or log-probabilities of the next token, (N, T, V).
    """

    metric, unit = PERPLEXITY, "%"

    def __init__(self, output: str = OUTPUT_NAME) -> None:
        self.output = output

    def scores(self, outputs: Arrays, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the negative log-likelihood of each target in nats, float64 (N, T)."""
        logits = outputs[self.output].astype(np.float64)
        greatest = logits.max(axis=-1)
        normalizers = greatest + np.log(np.exp(logits - greatest[..., None]).sum(axis=-1))
        losses: npt.NDArray[np.float64] = normalizers - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return losses

    def value(self, scores: Scores) -> float:
        """Return the perplexity; infinity if it overflows float64."""
        loss = float(scores.flat().mean())
        return exp(loss) if loss < 709 else inf

    def judge(self, trained: Scores, served: Scores, allowed: float) -> NonInferiority:
        """Judge the rise of perplexity in percent, by blocks of neighbouring tokens."""
        (first, counts), (second, _) = _blocks(trained), _blocks(served)
        return _in_units(judge_losses(first, second, counts, allowed_rise(allowed)), rise_in_percent)

    def answers(self, outputs: Arrays) -> npt.NDArray[np.int64]:
        """Return the most probable token at each position, int64 (N, T)."""
        answers: npt.NDArray[np.int64] = outputs[self.output].argmax(axis=-1)
        return answers


class RSquared(Scoring):
    """Coefficient of determination, 1 - sum of squared errors / sum of squares around the mean of the targets.

    The score is the squared error of a sample, summed over its values.

    Args:
        output: Name of the output, (N, ...) as the targets.
    """

    metric, unit = R_SQUARED, "points"

    def __init__(self, output: str) -> None:
        self.output = output

    def scores(self, outputs: Arrays, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the squared error of each sample, float64 (N,)."""
        found: npt.NDArray[np.float64] = (
            ((outputs[self.output].astype(np.float64) - targets) ** 2).reshape(len(targets), -1).sum(axis=1)
        )
        return found

    def value(self, scores: Scores) -> float:
        """Return the coefficient."""
        return 1 - float(scores.flat().sum()) / _squares(scores)

    def remeasured_differs(self, recorded: float, measured: float, samples: int) -> bool:
        """See `Scoring`; the coefficient may be near 0, so the difference is absolute."""
        return not abs(measured - recorded) <= RECORDED_POINTS / 100

    def judge(self, trained: Scores, served: Scores, allowed: float) -> NonInferiority:
        """Judge the drop in points (hundredths) by the mean difference of squared errors."""
        samples = np.ones(served.count, np.int64)
        scale = 100 * served.count / _squares(served)
        return _in_units(
            judge_losses(trained.flat(), served.flat(), samples, allowed / scale), lambda error: scale * error
        )


def _discordant(first: Scores, second: Scores) -> tuple[int, int]:
    """Return the number of samples that only the first, and only the second answers right."""
    one, other = first.flat() > 0, second.flat() > 0
    return int((one & ~other).sum()), int((other & ~one).sum())


def _blocks(scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the summed scores of blocks of neighbouring samples in a row, and their numbers of samples, (B,) each."""
    sums, counts = [], []
    for start in range(0, len(scores.values), BLOCK_BATCHES):
        batches = scores.values[start : start + BLOCK_BATCHES]
        sums.append(sum(values.reshape(len(values), -1).sum(axis=1) for values in batches))
        counts.append(np.full(len(batches[0]), sum(values.size // len(values) for values in batches), np.int64))
    return np.concatenate(sums), np.concatenate(counts)


def _squares(scores: Scores) -> float:
    """Return the sum of squares of all targets around their mean, value by value."""
    targets = np.concatenate(scores.targets).astype(np.float64)
    squares = float(((targets - targets.mean(axis=0)) ** 2).sum())
    if squares == 0:
        raise DataError("Expected targets that differ, without which there is no coefficient of determination")
    return squares


def _in_units(verdict: NonInferiority, units: Any) -> NonInferiority:
    """Return a verdict with its differences converted by a function that keeps their order."""
    low, high, loss, allowed = (
        units(value) if isfinite(value) else value
        for value in (verdict.low, verdict.high, verdict.loss, verdict.allowed)
    )
    return replace(verdict, low=low, high=high, loss=loss, allowed=allowed)
