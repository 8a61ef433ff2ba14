"""Compare runtimes batch by batch: the score of each, and the outputs of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.accuracy.samples import Arrays, Scores
from cpt_deploy.validation.accuracy.scoring import Scoring

Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class RuntimeResult:
    """The result of one runtime.

    Args:
        name: "trained", "executor", "onnxruntime", "onnxruntime-unoptimized", or a further format of the bundle.
        value: The metric.
        interval: Its 95 % interval; `None` if the metric has none.
        finite: Whether every output was a finite number.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    finite: bool


@dataclass(frozen=True)
class PairResult:
    """The comparison of two runtimes on the same samples.

    Args:
        first: Name of the first runtime.
        second: Name of the second.
        worst_difference: Max absolute difference of two output values; `None` if one was not finite or shapes differ.
        other_values: Number of unequal output values.
        other_answers: Number of samples with different answers; `None` if the task's outputs are no choice.
        figures: Further figures of the task's scoring.
    """

    first: str
    second: str
    worst_difference: float | None
    other_values: int
    other_answers: int | None
    figures: Mapping[str, float] = field(default_factory=dict)


class RuntimeComparison:
    """Collects scores and outputs of several runtimes on the same samples.

    Args:
        names: The runtimes.
        pairs: The pairs of them to compare.
        scoring: The scoring of the task.
    """

    def __init__(self, names: Sequence[str], pairs: Sequence[tuple[str, str]], scoring: Scoring) -> None:
        self.names, self.pairs, self.scoring = tuple(names), tuple(pairs), scoring
        self.scores = {name: Scores() for name in names}
        self.values = 0
        self._finite = dict.fromkeys(names, True)
        self._worst: dict[tuple[str, str], float] = dict.fromkeys(self.pairs, 0.0)
        self._other_values = dict.fromkeys(self.pairs, 0)
        self._other_answers: dict[tuple[str, str], int | None] = dict.fromkeys(self.pairs)

    def score(self, name: str, outputs: Arrays, targets: Values) -> None:
        """Add a batch of one runtime: outputs by name, without states, and the targets."""
        self.scores[name].add(self.scoring.scores(outputs, targets), targets)
        self._finite[name] &= all(bool(np.isfinite(values).all()) for values in outputs.values())

    def add(self, outputs: Mapping[str, Arrays]) -> None:
        """Compare a batch in all pairs: outputs by name, without states, of every runtime."""
        self.values += sum(values.size for values in next(iter(outputs.values())).values())
        for pair in self.pairs:
            first, second = (outputs.get(name) for name in pair)
            if first is None or second is None:
                continue
            if any(first[name].shape != second[name].shape for name in first):
                self._other_values[pair] += sum(max(first[name].size, second[name].size, 1) for name in first)
                self._worst[pair] = np.inf
                continue
            for name, values in first.items():
                difference = np.abs(values.astype(np.float64) - second[name])
                self._worst[pair] = max(self._worst[pair], float(difference.max(initial=0.0)))
                self._other_values[pair] += int((values != second[name]).sum())
            answers = self.scoring.answers(first)
            if answers is not None:
                found = int((answers != self.scoring.answers(second)).sum())
                self._other_answers[pair] = (self._other_answers[pair] or 0) + found

    def runtimes(self) -> tuple[RuntimeResult, ...]:
        """Return the result of each runtime."""
        return tuple(
            RuntimeResult(
                name,
                self.scoring.value(self.scores[name]),
                self.scoring.interval(self.scores[name]),
                self._finite[name],
            )
            for name in self.names
        )

    def comparisons(self) -> tuple[PairResult, ...]:
        """Return the result of each pair of runtimes that had the same samples."""
        return tuple(
            self._compare(first, second)
            for first, second in self.pairs
            if self.scores[first].paired_with(self.scores[second])
        )

    def _compare(self, first: str, second: str) -> PairResult:
        pair = first, second
        worst = self._worst[pair]
        return PairResult(
            first,
            second,
            worst_difference=worst if self._finite[first] and self._finite[second] and isfinite(worst) else None,
            other_values=self._other_values[pair],
            other_answers=self._other_answers[pair],
            figures=self.scoring.compare(self.scores[first], self.scores[second]),
        )
