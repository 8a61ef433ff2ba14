"""Compare runtimes batch by batch: scores of each, outputs of pairs, and the integers of every quantized tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.accuracy.samples import Arrays, Scores
from cpt_deploy.validation.accuracy.scoring import Scoring
from cpt_deploy.validation.integers.intermediate_outputs import IntermediateOutput

Values = npt.NDArray[np.generic]

_MOST_STEPS = 255


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
        worst_difference: Max absolute difference of two output values; `None` if one was not finite.
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


@dataclass(frozen=True)
class TensorResult:
    """Agreement of the integers of one quantized tensor.

    Args:
        name: Its name in the ONNX graph.
        operator: The operator whose result it holds.
        values: Number of integers compared.
        mismatches: Number of differing integers.
        worst_difference: The max difference, in integers; for layers with real results, in units of their integer sums.
    """

    name: str
    operator: str
    values: int
    mismatches: int
    worst_difference: int


@dataclass(frozen=True)
class ServedOutputs:
    """Agreement of the outputs of the executor and of the serving session, on every sample.

    Args:
        values: Number of values compared.
        differing: Number of differing values; with a tolerance, differing by more than it.
        worst: The max difference; `None` if one was not finite.
        tolerance: Max difference as a share of the sample's largest value, if parts compute in float: then the executor
            is replayed from onnxruntime's integers at the boundaries. `None` if values have to be equal.
    """

    values: int
    differing: int
    worst: float | None
    tolerance: float | None = None


@dataclass(frozen=True)
class TrainedCodes:
    """Differences between outputs of float fake quantization and of the integer executor, in quantization steps.

    Args:
        values: Number of quantized output values.
        differing: Number of values that differ by more than half a step.
        worst: The max difference in steps.
    """

    values: int
    differing: int
    worst: int


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
            if first is None or second is None or any(first[name].shape != second[name].shape for name in first):
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
        return PairResult(
            first,
            second,
            worst_difference=self._worst[pair] if self._finite[first] and self._finite[second] else None,
            other_values=self._other_values[pair],
            other_answers=self._other_answers[pair],
            figures=self.scoring.compare(self.scores[first], self.scores[second]),
        )


class OutputAgreement:
    """Collects the agreement of two runtimes' outputs up to a tolerance.

    Args:
        tolerance: Max difference of a value as a share of its sample's largest one; of the batch's largest one if a
            sample has a single value.

    Attributes:
        unequal: Number of values that are not equal.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.unequal = self._values = self._differing = 0
        self._worst: float | None = 0.0

    def add(self, first: Arrays, second: Arrays) -> None:
        """Add a batch of outputs by name."""
        for name, served in second.items():
            if first[name].shape != served.shape:
                self._values += served.size
                self.unequal += max(first[name].size, served.size)
                self._differing += max(first[name].size, served.size)
                self._worst = None
                continue
            with np.errstate(invalid="ignore"):  # equal infinities have no difference
                distance = np.abs(first[name].astype(np.float64) - served)
            difference = np.where(first[name] == served, 0.0, distance)
            axes = tuple(range(1, served.ndim)) if served.ndim and served.size > len(served) else None
            greatest = np.abs(served).max(axis=axes, keepdims=True, initial=0).astype(np.float64)
            self._values += served.size
            self.unequal += int((~(difference == 0)).sum())
            # "not within" instead of "beyond", so that NaN counts as differing
            self._differing += int((~(difference <= self.tolerance * greatest)).sum())
            if self._worst is not None:
                self._worst = max(self._worst, float(difference.max(initial=0.0)))
                self._worst = self._worst if np.isfinite(self._worst) else None

    def result(self) -> ServedOutputs:
        """Return the agreement over all batches."""
        return ServedOutputs(self._values, self._differing, self._worst, self.tolerance)


class CodeCount:
    """Collects the differences of outputs in quantization steps.

    Args:
        scales: Scales of the quantized outputs by name; others are not counted.
    """

    def __init__(self, scales: Mapping[str, float]) -> None:
        self.scales = dict(scales)
        self._values = self._differing = self._worst = 0

    def add(self, trained: Arrays, executor: Arrays) -> None:
        """Add a batch of outputs by name."""
        for name, scale in self.scales.items():
            if name not in trained or trained[name].shape != executor[name].shape:
                continue
            steps = np.abs(trained[name].astype(np.float64) - executor[name]) / scale
            codes = np.rint(np.nan_to_num(steps, nan=255, posinf=255))
            self._values += codes.size
            self._differing += int(np.count_nonzero(codes))
            self._worst = max(self._worst, int(codes.max(initial=0)))

    def result(self) -> TrainedCodes | None:
        """Return the differences over all batches; `None` if there were no quantized outputs."""
        return TrainedCodes(self._values, self._differing, self._worst) if self._values else None


class IntegerComparison:
    """Counts the differing integers of each tensor.

    Args:
        intermediates: The tensors to compare, in graph order.
        units: Real value of one unit of the integer sums, by name, of tensors with real values: two unequal results of
            a layer differ by at least one unit.
    """

    def __init__(self, intermediates: Sequence[IntermediateOutput], units: Mapping[str, float] | None = None) -> None:
        self.intermediates = tuple(intermediates)
        self.units = dict(units or {})
        self._counts = {intermediate.name: [0, 0, 0] for intermediate in intermediates}

    def add(self, expected: Mapping[str, Values], got: Mapping[str, Values]) -> None:
        """Add a batch: the integers of each tensor by name, uint8 or int8 (float32 if real).

        In tensors of different shapes, which follow from different values, all integers count as differing.
        """
        for intermediate in self.intermediates:
            first, second = expected[intermediate.name], got[intermediate.name]
            counts = self._counts[intermediate.name]
            if first.shape != second.shape:
                counts[0] += second.size
                counts[1:] = counts[1] + max(first.size, second.size), _MOST_STEPS
                continue
            counts[0] += first.size
            if np.array_equal(first, second):
                continue
            difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
            if intermediate.name in self.units:
                difference = np.ceil(
                    np.nan_to_num(difference / self.units[intermediate.name], nan=2.0**31, posinf=2.0**31)
                )
            counts[1] += int(np.count_nonzero(difference))
            counts[2] = max(counts[2], int(difference.max()))

    def results(self) -> tuple[TensorResult, ...]:
        """Return the result of each tensor, in graph order."""
        return tuple(
            TensorResult(intermediate.name, intermediate.operator, *self._counts[intermediate.name])
            for intermediate in self.intermediates
        )
