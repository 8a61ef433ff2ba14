"""Compare runtimes batch by batch: accuracy of each, logits of pairs, and the integers of every quantized tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.accuracy.statistics import Proportion, mcnemar_exact, wilson_interval
from cpt_deploy.validation.integers.intermediate_outputs import IntermediateOutput

Logits = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class RuntimeResult:
    """The result of one runtime.

    Args:
        name: "trained", "executor", "onnxruntime", "onnxruntime-unoptimized", or a further format of the bundle.
        accuracy: Share of correct labels with its 95 % interval.
        finite: Whether every logit was a finite number.
    """

    name: str
    accuracy: Proportion
    finite: bool


@dataclass(frozen=True)
class PairResult:
    """The comparison of two runtimes on the same samples.

    Args:
        first: Name of the first runtime.
        second: Name of the second.
        worst_logit_difference: Max absolute difference of two logits; `None` if one was not finite.
        other_labels: Number of samples with different labels.
        only_first_right: Number of samples that only the first labels correctly.
        only_second_right: Number of samples that only the second labels correctly.
        p_value: P-value of McNemar's exact test that both are equally accurate.
        other_logits: Number of unequal logits.
    """

    first: str
    second: str
    worst_logit_difference: float | None
    other_labels: int
    only_first_right: int
    only_second_right: int
    p_value: float
    other_logits: int = 0


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
class ServedLogits:
    """Agreement of the logits of the executor and of the serving session, on every sample.

    Args:
        values: Number of logits compared.
        differing: Number of differing logits; if parts compute in float, differing by more than the tolerance.
        worst: The max difference; `None` if one was not finite.
        tolerance: Max difference as a share of the sample's max logit, if parts compute in float: then the executor is
            replayed from onnxruntime's integers at the boundaries. `None` if logits have to be equal.
    """

    values: int
    differing: int
    worst: float | None
    tolerance: float | None = None


@dataclass(frozen=True)
class TrainedCodes:
    """Differences between the logits of float fake quantization and of the integer executor, in quantization steps.

    Args:
        values: Number of logits.
        differing: Number of logits that differ by more than half a step.
        worst: The max difference in steps.
    """

    values: int
    differing: int
    worst: int


class RuntimeComparison:
    """Collects the logits of several runtimes on the same samples.

    Args:
        names: The runtimes.
        pairs: The pairs of them to compare.
    """

    def __init__(self, names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
        self.names = tuple(names)
        self.pairs = tuple(pairs)
        self._right: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in names}
        self._finite = dict.fromkeys(names, True)
        self._worst: dict[tuple[str, str], float] = dict.fromkeys(self.pairs, 0.0)
        self._other_labels = dict.fromkeys(self.pairs, 0)
        self._other_logits = dict.fromkeys(self.pairs, 0)
        self.logits = 0

    def add(self, logits: Mapping[str, Logits], labels: npt.NDArray[np.int64]) -> None:
        """Add a batch.

        Args:
            logits: Logits of every runtime, float32 (N, K).
            labels: The true classes, int64 (N,).
        """
        self.logits += next(iter(logits.values())).size
        predicted = {name: logits[name].argmax(axis=1) for name in self.names}
        for name in self.names:
            self._right[name].append(predicted[name] == labels)
            self._finite[name] &= bool(np.isfinite(logits[name]).all())
        for pair in self.pairs:
            first, second = pair
            if self._finite[first] and self._finite[second]:
                difference = np.abs(logits[first].astype(np.float64) - logits[second])
                self._worst[pair] = max(self._worst[pair], float(difference.max(initial=0.0)))
            self._other_labels[pair] += int((predicted[first] != predicted[second]).sum())
            self._other_logits[pair] += int((logits[first] != logits[second]).sum())

    def runtimes(self) -> tuple[RuntimeResult, ...]:
        """Return the result of each runtime."""
        right = {name: np.concatenate(self._right[name]) for name in self.names}
        return tuple(
            RuntimeResult(name, wilson_interval(int(right[name].sum()), len(right[name])), self._finite[name])
            for name in self.names
        )

    def comparisons(self) -> tuple[PairResult, ...]:
        """Return the result of each pair."""
        return tuple(self._compare(*pair) for pair in self.pairs)

    def _compare(self, first: str, second: str) -> PairResult:
        right, right_too = np.concatenate(self._right[first]), np.concatenate(self._right[second])
        only_first, only_second = int((right & ~right_too).sum()), int((right_too & ~right).sum())
        finite = self._finite[first] and self._finite[second]
        return PairResult(
            first=first,
            second=second,
            worst_logit_difference=self._worst[first, second] if finite else None,
            other_labels=self._other_labels[first, second],
            only_first_right=only_first,
            only_second_right=only_second,
            p_value=mcnemar_exact(only_first, only_second),
            other_logits=self._other_logits[first, second],
        )


class LogitAgreement:
    """Collects the agreement of two runtimes' logits up to a tolerance.

    Args:
        tolerance: Max difference of a logit as a share of its sample's max logit.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._values = self._differing = 0
        self._worst: float | None = 0.0

    def add(self, first: Logits, second: Logits) -> None:
        """Add a batch of logits, float32 (N, K) each."""
        difference = np.abs(first.astype(np.float64) - second)
        greatest = np.abs(second).max(axis=1, keepdims=True).astype(np.float64)
        self._values += second.size
        # "not within" instead of "beyond", so that NaN counts as differing
        self._differing += int((~(difference <= self.tolerance * greatest)).sum())
        if self._worst is not None:
            self._worst = max(self._worst, float(difference.max(initial=0.0)))
            self._worst = self._worst if np.isfinite(self._worst) else None

    def result(self) -> ServedLogits:
        """Return the agreement over all batches."""
        return ServedLogits(self._values, self._differing, self._worst, self.tolerance)


class CodeCount:
    """Collects the differences of logits in quantization steps.

    Args:
        scale: Scale of the quantized logits.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._values = self._differing = self._worst = 0

    def add(self, trained: Logits, executor: Logits) -> None:
        """Add a batch of logits, float32 (N, K) each."""
        codes = np.rint(np.nan_to_num(np.abs(trained.astype(np.float64) - executor) / self.scale, nan=255, posinf=255))
        self._values += codes.size
        self._differing += int(np.count_nonzero(codes))
        self._worst = max(self._worst, int(codes.max(initial=0)))

    def result(self) -> TrainedCodes:
        """Return the differences over all batches."""
        return TrainedCodes(self._values, self._differing, self._worst)


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
        """Add a batch: the integers of each tensor by name, uint8 or int8 (float32 if real), of equal shapes.

        Raises:
            ValueError: If two shapes differ.
        """
        for intermediate in self.intermediates:
            first, second = expected[intermediate.name], got[intermediate.name]
            if first.shape != second.shape:
                raise ValueError(f"Expected tensor {intermediate.name} of shape {first.shape}, but got {second.shape}")
            counts = self._counts[intermediate.name]
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
