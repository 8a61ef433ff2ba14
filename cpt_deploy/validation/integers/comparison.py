"""Compare integers batch by batch: those of every quantized tensor, and outputs in quantization steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.accuracy.samples import Arrays
from cpt_deploy.validation.integers.intermediate_outputs import IntermediateOutput

Values = npt.NDArray[np.generic]

_MOST_STEPS = 255
_FAR = 256
"""Ratio to the largest value that differs above which equal values are constants, such as -1e9 of a mask: more than
that of the values of 8 bits."""


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


class OutputAgreement:
    """Collects the agreement of two runtimes' outputs up to a tolerance.

    Args:
        tolerance: Max difference of a value as a share of its sample's largest one that is no constant; of the batch's
            if a sample has a single value.

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
            size = np.maximum(np.abs(first[name]), np.abs(served)).astype(np.float64)
            unequal = (difference != 0) & np.isfinite(size)
            reach = _FAR * np.where(unequal, size, 0).max(axis=axes, keepdims=True, initial=0)
            greatest = np.where(size <= reach, size, 0).max(axis=axes, keepdims=True, initial=0)
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
        tolerance: Max difference of two integers that do not count as differing.
    """

    def __init__(
        self,
        intermediates: Sequence[IntermediateOutput],
        units: Mapping[str, float] | None = None,
        *,
        tolerance: int = 0,
    ) -> None:
        self.intermediates = tuple(intermediates)
        self.units = dict(units or {})
        self.tolerance = tolerance
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
            counts[1] += int(np.count_nonzero(difference > self.tolerance))
            counts[2] = max(counts[2], int(difference.max()))

    def results(self) -> tuple[TensorResult, ...]:
        """Return the result of each tensor, in graph order."""
        return tuple(
            TensorResult(intermediate.name, intermediate.operator, *self._counts[intermediate.name])
            for intermediate in self.intermediates
        )
