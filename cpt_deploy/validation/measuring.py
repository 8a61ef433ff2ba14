"""Running the same batches through every runtime and collecting what they compute."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import UsageError
from cpt_deploy.validation.comparison import Codes, IntegerComparison, Logits, RuntimeComparison
from cpt_deploy.validation.integer_model import IntegerModel
from cpt_deploy.validation.samples import Confusion, ConfusionCount, LogitPairs, LogitSampler
from cpt_deploy.validation.taps import TappedModel

Inputs = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

TrainedModel = Callable[[Inputs], Logits]
"""Maps normalised images, float32 (N, C, H, W), to logits, float32 (N, K)."""


class ValidationReporter(Protocol):
    """Hears of the progress."""

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of `total` samples are measured."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Args:
        served: The model as it serves.
        unoptimized: The same file with onnxruntime's optimizations off.
        trained: The trained model, if it is there.
        executor: The integer model, if it is to be compared.
        tapped: The file with its quantized tensors as outputs, if they are to be compared with the integer model's.
        formats: Further forms of the model by name.
        provider: The execution provider of onnxruntime.
    """

    served: OnnxRuntimeModel
    unoptimized: OnnxRuntimeModel
    trained: TrainedModel | None
    executor: IntegerModel | None
    tapped: TappedModel | None
    formats: Mapping[str, TrainedModel] = field(default_factory=dict)
    provider: str = "cpu"

    def runtimes(self) -> list[str]:
        """Return the names of the runtimes."""
        trained = ["trained"] if self.trained is not None else []
        executor = ["executor"] if self.executor is not None else []
        return [*trained, *executor, "onnxruntime", "onnxruntime-unoptimized", *self.formats]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of runtimes that tell something."""
        names = self.runtimes()
        pairs = [(name, "onnxruntime") for name in names if name != "onnxruntime"]
        return [*pairs, ("trained", "executor")] if {"trained", "executor"} <= set(names) else pairs


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was collected.

    Args:
        runtimes: Logits and labels.
        integers: The executor's integers against onnxruntime's in every compared tensor; `None` if none were.
        unoptimized: The same with onnxruntime's optimizations off.
        confusion: Labels that onnxruntime gave against the right ones.
        logit_pairs: Some logits of the trained model and of onnxruntime; `None` without a trained model.
        notes: What could not be compared.
    """

    runtimes: RuntimeComparison
    integers: IntegerComparison | None
    unoptimized: IntegerComparison | None
    confusion: Confusion
    logit_pairs: LogitPairs | None
    notes: tuple[str, ...]


def measure(
    subject: Subject,
    batches: Iterable[tuple[Inputs, Labels]],
    total: int,
    reporter: ValidationReporter | None,
) -> Measurement:
    """Run batches through every runtime.

    Args:
        subject: What to run.
        batches: Normalised images, float32 (N, C, H, W), with their classes, int64 (N,).
        total: Number of samples in all batches.
        reporter: Hears of the progress.

    Raises:
        UsageError: If the trained model returns logits of another shape.
    """
    runtimes = RuntimeComparison(subject.runtimes(), subject.pairs())
    inside = _Inside(subject.tapped, subject.provider) if subject.tapped is not None else None
    confusion = ConfusionCount()
    sampler = LogitSampler("trained", "onnxruntime", total) if subject.trained is not None else None
    done = 0
    for inputs, labels in batches:
        served = subject.served.run(inputs)
        logits = {"onnxruntime": served, "onnxruntime-unoptimized": subject.unoptimized.run(inputs)}
        if subject.trained is not None:
            logits["trained"] = _checked(subject.trained(inputs), served)
        if subject.executor is not None:
            logits["executor"], codes = subject.executor.run(inputs)
            if inside is not None:
                inside.add(inputs, codes, served)
        logits |= {name: _checked(program(inputs), served) for name, program in subject.formats.items()}
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
        unoptimized=inside.unoptimized if inside else None,
        confusion=confusion.result(),
        logit_pairs=sampler.result() if sampler else None,
        notes=inside.notes() if inside else (),
    )


class _Inside:
    """The tapped model next to the executor."""

    def __init__(self, tapped: TappedModel, provider: str) -> None:
        self.session = OnnxRuntimeModel(tapped.model, threads=None, provider=provider)
        self.unoptimized_session = OnnxRuntimeModel(tapped.model, threads=None, optimize=False, provider=provider)
        self.tapped = tapped
        self.comparison: IntegerComparison | None = None
        self.unoptimized: IntegerComparison | None = None
        self.unmatched: list[str] = []
        self.same_logits = True

    def add(self, inputs: Inputs, expected: Mapping[str, Codes], served: Logits) -> None:
        got = self.session.trace(inputs)
        if self.comparison is None or self.unoptimized is None:
            taps = [tap for tap in self.tapped.taps if tap.name in expected]
            self.comparison, self.unoptimized = IntegerComparison(taps), IntegerComparison(taps)
            compared = {tap.name for tap in self.comparison.taps}
            listed = [tap.name for tap in (*self.tapped.taps, *self.tapped.hidden)]
            self.unmatched = [name for name in dict.fromkeys([*listed, *expected]) if name not in compared]
        self.comparison.add(expected, got)
        self.unoptimized.add(expected, self.unoptimized_session.trace(inputs))
        self.same_logits &= np.array_equal(got["logits"], served, equal_nan=True)

    def notes(self) -> tuple[str, ...]:
        hidden = [tap.name for tap in self.tapped.hidden]
        notes = []
        if hidden:
            notes.append(f"{_list(hidden)} could not be looked at: as outputs they would change the optimized graph")
        others = [name for name in self.unmatched if name not in hidden]
        if others:
            notes.append(f"{_list(others)} exist only in one of integer model and ONNX graph")
        if not self.same_logits:
            notes.append("onnxruntime's logits changed when its inner integers were looked at")
        return tuple(notes)


def _checked(logits: Logits, like: Logits) -> Logits:
    if logits.shape != like.shape:
        raise UsageError(
            f"Expected the trained model to return logits of shape {like.shape}, but got {logits.shape}",
            hint="is the bundle an export of this run?",
        )
    return logits


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} quantized tensor{'s' if len(names) > 1 else ''} ({shown})"
