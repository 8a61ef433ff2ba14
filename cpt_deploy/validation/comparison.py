"""Comparing runtimes batch by batch: accuracy of each, logits of two, and the integers of every quantized tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.accuracy.statistics import Proportion, mcnemar_exact, wilson_interval
from cpt_deploy.validation.integers.intermediate_outputs import Tap

Logits = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int8]
Values = npt.NDArray[np.generic]


@dataclass(frozen=True)
class RuntimeResult:
    """How one runtime did.

    Args:
        name: "trained", "executor", "onnxruntime", "onnxruntime-unoptimized", or a further format of the bundle.
        accuracy: Share of right labels with its 95 % interval.
        finite: Whether every logit was a finite number.
    """

    name: str
    accuracy: Proportion
    finite: bool


@dataclass(frozen=True)
class PairResult:
    """How two runtimes compare on the same samples.

    Args:
        first: Name of the one.
        second: Name of the other.
        worst_logit_difference: Greatest absolute difference of two logits; `None` if one was not finite.
        other_labels: Samples to which they give different labels.
        only_first_right: Samples that only the first labels rightly.
        only_second_right: Samples that only the second labels rightly.
        p_value: Of McNemar's exact test that both are equally accurate.
        other_logits: Number of logits that are not the same number.
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
    """How the integers of one quantized tensor agree.

    Args:
        name: Its name in the ONNX graph.
        operator: The operator whose result it holds.
        values: Number of integers compared.
        mismatches: How many of them differ.
        worst_difference: The greatest difference, in codes; for results of layers that are real, in units of the
            integer sum that they are made of.
    """

    name: str
    operator: str
    values: int
    mismatches: int
    worst_difference: int


@dataclass(frozen=True)
class ServedLogits:
    """How the logits of the executor and of the session that serves agree, on every sample.

    Args:
        values: Number of logits compared.
        differing: How many differ; where parts compute in float, by more than the tolerance.
        worst: The greatest difference; `None` if one was not finite.
        tolerance: Most by which one may differ, as a share of the sample's greatest logit; `None` where they have to
            be the same number. There the executor has the codes that onnxruntime had at each entry.
    """

    values: int
    differing: int
    worst: float | None
    tolerance: float | None = None


@dataclass(frozen=True)
class TrainedCodes:
    """By how many codes the logits of fake quantization in float differ from those of the integer executor.

    Args:
        values: Number of logits.
        differing: How many are nearer to another code.
        worst: By how many codes at most.
    """

    values: int
    differing: int
    worst: int


class RuntimeComparison:
    """Collects the logits of several runtimes on the same samples.

    Args:
        names: The runtimes.
        pairs: Which of them to compare.
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
            logits: Of every runtime, float32 (N, K).
            labels: The right classes, int64 (N,).
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
    """Collects how two runtimes' logits agree up to a tolerance.

    Args:
        tolerance: Most by which a logit may differ, as a share of its sample's greatest.
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
        # not within, so that NaN differs
        self._differing += int((~(difference <= self.tolerance * greatest)).sum())
        if self._worst is not None:
            self._worst = max(self._worst, float(difference.max(initial=0.0)))
            self._worst = self._worst if np.isfinite(self._worst) else None

    def result(self) -> ServedLogits:
        """Return what was found."""
        return ServedLogits(self._values, self._differing, self._worst, self.tolerance)


class CodeCount:
    """Collects by how many codes logits differ.

    Args:
        scale: What a code is worth.
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
        """Return what was found."""
        return TrainedCodes(self._values, self._differing, self._worst)


class IntegerComparison:
    """Counts the integers that differ, tensor by tensor.

    Args:
        taps: The tensors to compare, in graph order.
        units: What one unit of the integer sum is worth in tensors of real values, by name: two results of a layer
            that are not the same number differ by one unit at least.
    """

    def __init__(self, taps: Sequence[Tap], units: Mapping[str, float] | None = None) -> None:
        self.taps = tuple(taps)
        self.units = dict(units or {})
        self._counts = {tap.name: [0, 0, 0] for tap in taps}

    def add(self, expected: Mapping[str, Values], got: Mapping[str, Values]) -> None:
        """Add a batch: the codes of each tensor by name, uint8 or int8 (float32 if real), and of one shape.

        Raises:
            ValueError: If two shapes differ.
        """
        for tap in self.taps:
            first, second = expected[tap.name], got[tap.name]
            if first.shape != second.shape:
                raise ValueError(f"Expected tensor {tap.name} of shape {first.shape}, but got {second.shape}")
            counts = self._counts[tap.name]
            counts[0] += first.size
            if np.array_equal(first, second):
                continue
            difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
            if tap.name in self.units:
                difference = np.ceil(np.nan_to_num(difference / self.units[tap.name], nan=2.0**31, posinf=2.0**31))
            counts[1] += int(np.count_nonzero(difference))
            counts[2] = max(counts[2], int(difference.max()))

    def results(self) -> tuple[TensorResult, ...]:
        """Return the result of each tensor, in graph order."""
        return tuple(TensorResult(tap.name, tap.operator, *self._counts[tap.name]) for tap in self.taps)
