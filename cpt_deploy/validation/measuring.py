"""Run the same batches through every runtime and collect the results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import UsageError
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME
from cpt_deploy.validation.accuracy.reference import Inputs, TrainedModel
from cpt_deploy.validation.accuracy.samples import Confusion, ConfusionCount, LogitPairs, LogitSampler
from cpt_deploy.validation.comparison import (
    CodeCount,
    Codes,
    IntegerComparison,
    Logits,
    RuntimeComparison,
    ServedLogits,
    TrainedCodes,
)
from cpt_deploy.validation.integers.integer_model import IntegerModel, Replay
from cpt_deploy.validation.integers.intermediate_outputs import ObservableModel
from cpt_deploy.validation.integers.replay import ReplayedIntegers, inside_notes

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of samples.

    Args:
        inputs: Inputs from the bundle's preprocessing, float32 (N, C, H, W).
        trained_inputs: Inputs from the trained model's preprocessing.
        labels: Their classes, int64 (N,).
    """

    inputs: Inputs
    trained_inputs: Inputs
    labels: Labels


class ValidationReporter(Protocol):
    """Receives the progress of a validation."""

    def advance(self, done: int, total: int) -> None:
        """Receive the number of measured samples and the total."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """The runtimes to measure.

    Args:
        served: The model as it is served.
        unoptimized: The same file with onnxruntime's optimizations off.
        trained: The trained model, if available.
        executor: The integer model, if it is to be compared.
        observable: The model with intermediate outputs, if they are to be compared with the integer model's.
        formats: Further formats of the model by name.
        provider: The execution provider of onnxruntime.
        replay: The integer model of a network with operations in float: it is replayed from onnxruntime's integers at
            the boundaries, and differences of the free-running executor are reported separately.
        logit_scale: Scale of the quantized logits; `None` if they are real numbers or it is unknown.
    """

    served: OnnxRuntimeModel
    unoptimized: OnnxRuntimeModel
    trained: TrainedModel | None
    executor: IntegerModel | None
    observable: ObservableModel | None
    formats: Mapping[str, TrainedModel] = field(default_factory=dict)
    provider: str = "cpu"
    replay: Replay | None = None
    logit_scale: float | None = None

    def runtimes(self) -> list[str]:
        """Return the names of the runtimes."""
        trained = ["trained"] if self.trained is not None else []
        executor = ["executor"] if self.executor is not None else []
        return [*trained, *executor, "onnxruntime", "onnxruntime-unoptimized", *self.formats]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of runtimes to compare."""
        names = self.runtimes()
        pairs = [(name, "onnxruntime") for name in names if name != "onnxruntime"]
        return [*pairs, ("trained", "executor")] if {"trained", "executor"} <= set(names) else pairs


@dataclass(frozen=True, eq=False)
class Measurement:
    """The collected results.

    Args:
        runtimes: Logits and labels of the runtimes.
        integers: The executor's integers against onnxruntime's in every compared tensor; `None` if none were.
        unoptimized: The same with onnxruntime's optimizations off; `None` if some operations compute in float.
        free_running: Integers of the free-running executor of a network with operations in float; else `None`.
        confusion: Confusion matrix of onnxruntime.
        logit_pairs: Some logits of the trained model and of onnxruntime; `None` without a trained model.
        notes: Notes on what could not be compared.
        served_logits: The executor's logits against those of the serving session; `None` if it did not run.
        trained_codes: The trained model's logits against the executor's, in steps; `None` if one did not run.
    """

    runtimes: RuntimeComparison
    integers: IntegerComparison | None
    unoptimized: IntegerComparison | None
    confusion: Confusion
    logit_pairs: LogitPairs | None
    notes: tuple[str, ...]
    free_running: IntegerComparison | None = None
    served_logits: ServedLogits | None = None
    trained_codes: TrainedCodes | None = None


def measure(
    subject: Subject,
    batches: Iterable[Batch],
    total: int,
    reporter: ValidationReporter | None,
) -> Measurement:
    """Run batches through every runtime.

    Args:
        subject: The runtimes.
        batches: The samples.
        total: Number of samples in all batches.
        reporter: Receives the progress.

    Raises:
        UsageError: If the trained model returns logits of another shape.
    """
    runtimes = RuntimeComparison(subject.runtimes(), subject.pairs())
    inside = _inside(subject)
    confusion = ConfusionCount()
    sampler = LogitSampler("trained", "onnxruntime", total) if subject.trained is not None else None
    both = subject.trained is not None and subject.executor is not None
    trained_codes = CodeCount(subject.logit_scale) if both and subject.logit_scale is not None else None
    done = 0
    for batch in batches:
        inputs, labels = batch.inputs, batch.labels
        given = {INPUT_NAME: inputs}
        served = subject.served.run(given)[OUTPUT_NAME]
        logits = {"onnxruntime": served, "onnxruntime-unoptimized": subject.unoptimized.run(given)[OUTPUT_NAME]}
        if subject.trained is not None:
            logits["trained"] = _checked(subject.trained(batch.trained_inputs), served)
        if subject.executor is not None:
            logits["executor"], codes = subject.executor.run(inputs)
            if inside is not None:
                inside.add(inputs, codes, served)
        logits |= {name: _checked(program(inputs), served) for name, program in subject.formats.items()}
        if trained_codes is not None:
            trained_codes.add(logits["trained"], logits["executor"])
        runtimes.add(logits, labels)
        confusion.add(served, labels)
        if sampler is not None:
            sampler.add(logits)
        done += len(labels)
        if reporter is not None:
            reporter.advance(done, total)
    return Measurement(
        runtimes=runtimes,
        integers=inside.comparison if inside else None,
        unoptimized=inside.unoptimized if isinstance(inside, _Inside) else None,
        confusion=confusion.result(),
        logit_pairs=sampler.result() if sampler else None,
        notes=inside.notes() if inside else (),
        free_running=inside.free_running if isinstance(inside, ReplayedIntegers) else None,
        served_logits=_served_logits(subject, runtimes, inside),
        trained_codes=trained_codes.result() if trained_codes else None,
    )


def _served_logits(
    subject: Subject, runtimes: RuntimeComparison, inside: "_Inside | ReplayedIntegers | None"
) -> ServedLogits | None:
    if isinstance(inside, ReplayedIntegers):
        return inside.logits.result()
    # with float parts, the free-running executor may compute different integers
    if subject.executor is None or subject.replay is not None:
        return None
    pair = next(pair for pair in runtimes.comparisons() if (pair.first, pair.second) == ("executor", "onnxruntime"))
    return ServedLogits(runtimes.logits, pair.other_logits, pair.worst_logit_difference)


def _inside(subject: Subject) -> "_Inside | ReplayedIntegers | None":
    if subject.observable is None:
        return None
    if subject.replay is not None:
        return ReplayedIntegers(subject.observable, subject.replay, subject.provider)
    return _Inside(subject.observable, subject.provider)


class _Inside:
    """Compares a model with intermediate outputs and the executor."""

    def __init__(self, observable: ObservableModel, provider: str) -> None:
        self.session = OnnxRuntimeModel(observable.model, threads=None, provider=provider)
        self.unoptimized_session = OnnxRuntimeModel(observable.model, threads=None, optimize=False, provider=provider)
        self.observable = observable
        self.comparison: IntegerComparison | None = None
        self.unoptimized: IntegerComparison | None = None
        self.unmatched: list[str] = []
        self.same_logits = True

    def add(self, inputs: Inputs, expected: Mapping[str, Codes], served: Logits) -> None:
        got = self.session.trace({INPUT_NAME: inputs})
        if self.comparison is None or self.unoptimized is None:
            intermediates = [
                intermediate for intermediate in self.observable.intermediates if intermediate.name in expected
            ]
            self.comparison, self.unoptimized = IntegerComparison(intermediates), IntegerComparison(intermediates)
            compared = {intermediate.name for intermediate in self.comparison.intermediates}
            listed = [intermediate.name for intermediate in (*self.observable.intermediates, *self.observable.hidden)]
            self.unmatched = [name for name in dict.fromkeys([*listed, *expected]) if name not in compared]
        self.comparison.add(expected, got)
        self.unoptimized.add(expected, self.unoptimized_session.trace({INPUT_NAME: inputs}))
        self.same_logits &= np.array_equal(got[OUTPUT_NAME], served, equal_nan=True)

    def notes(self) -> tuple[str, ...]:
        hidden = [intermediate.name for intermediate in self.observable.hidden]
        others = [name for name in self.unmatched if name not in hidden]
        return inside_notes(hidden, others, same_logits=self.same_logits)


def _checked(logits: Logits, like: Logits) -> Logits:
    if logits.shape != like.shape:
        raise UsageError(
            f"Expected the trained model to return logits of shape {like.shape}, but got {logits.shape}",
            hint="is the bundle an export of this run?",
        )
    return logits
