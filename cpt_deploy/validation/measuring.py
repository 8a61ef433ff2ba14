"""Run the same samples through every runtime and collect the results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import next_states
from cpt_deploy.errors import UsageError
from cpt_deploy.signature import Signature
from cpt_deploy.validation.accuracy.details import Confusion, ConfusionCount, OutputPairs, OutputSampler
from cpt_deploy.validation.accuracy.reference import Reference
from cpt_deploy.validation.accuracy.runtimes import RuntimeComparison
from cpt_deploy.validation.accuracy.samples import Arrays, Batch, Runtime, Samples, Scores
from cpt_deploy.validation.accuracy.scoring import Scoring
from cpt_deploy.validation.integers.comparison import CodeCount, IntegerComparison, ServedOutputs, TrainedCodes
from cpt_deploy.validation.integers.inside import InsideComparison
from cpt_deploy.validation.integers.integer_model import ExecutedGraph, Execution
from cpt_deploy.validation.integers.intermediate_outputs import ObservableModel

TRAINED, EXECUTOR, SERVED, UNOPTIMIZED = "trained", "executor", "onnxruntime", "onnxruntime-unoptimized"
"""Names of the runtimes that are measured besides further formats."""


class ValidationReporter(Protocol):
    """Receives the progress of a validation."""

    def advance(self, done: int, total: int) -> None:
        """Receive the number of measured samples and the total."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """The runtimes to measure.

    Args:
        signature: Inputs, outputs and states of all of them.
        served: The model as it is served.
        unoptimized: The same file with onnxruntime's optimizations off.
        trained: The trained model, if available.
        executor: The integer model, if it is to be compared.
        observable: The model with intermediate outputs, if they are to be compared with the integer model's.
        formats: Further formats of the model by name.
        provider: The execution provider of onnxruntime.
        replay: The integer model of a network with operations in float: it is replayed from onnxruntime's integers at
            the boundaries, and differences of the free-running executor are reported separately.
        output_scales: Scales of the quantized outputs by name.
    """

    signature: Signature
    served: OnnxRuntimeModel
    unoptimized: OnnxRuntimeModel
    trained: Reference | None
    executor: ExecutedGraph | None
    observable: ObservableModel | None
    formats: Mapping[str, Runtime] = field(default_factory=dict)
    provider: str = "cpu"
    replay: ExecutedGraph | None = None
    output_scales: Mapping[str, float] = field(default_factory=dict)

    def runtimes(self) -> list[str]:
        """Return the names of the runtimes."""
        trained = [TRAINED] if self.trained is not None else []
        executor = [EXECUTOR] if self.executor is not None else []
        return [*trained, *executor, SERVED, UNOPTIMIZED, *self.formats]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of runtimes to compare."""
        names = self.runtimes()
        pairs = [(name, SERVED) for name in names if name != SERVED]
        return [*pairs, (TRAINED, EXECUTOR)] if {TRAINED, EXECUTOR} <= set(names) else pairs


@dataclass(frozen=True, eq=False)
class Measurement:
    """The collected results.

    Args:
        runtimes: Scores and outputs of the runtimes.
        integers: The executor's integers against onnxruntime's in every compared tensor; `None` if none were.
        unoptimized: The same with onnxruntime's optimizations off; `None` if some operations compute in float.
        confusion: Confusion matrix of onnxruntime; `None` if the task has no classes.
        output_pairs: Some output values of the trained model and of onnxruntime; `None` without a trained model.
        notes: Notes on what could not be compared.
        free_running: Integers of the free-running executor of a network with operations in float; else `None`.
        boundaries: Integers behind each float part of such a network, see `InsideComparison`.
        served_outputs: The executor's outputs against those of the serving session; `None` if it did not run.
        session_outputs: The outputs of the session whose integers were compared against those of the serving session.
        trained_codes: The trained model's outputs against the executor's, in steps; `None` if one did not run.
    """

    runtimes: RuntimeComparison
    integers: IntegerComparison | None
    unoptimized: IntegerComparison | None
    confusion: Confusion | None
    output_pairs: OutputPairs | None
    notes: tuple[str, ...]
    free_running: IntegerComparison | None = None
    boundaries: IntegerComparison | None = None
    served_outputs: ServedOutputs | None = None
    session_outputs: ServedOutputs | None = None
    trained_codes: TrainedCodes | None = None

    @property
    def scores(self) -> Mapping[str, Scores]:
        """The scores of each runtime by its name."""
        return self.runtimes.scores


class Carried:
    """A runtime that carries its states from batch to batch.

    Args:
        signature: Its signature.
        run: The runtime.
    """

    def __init__(self, signature: Signature, run: Runtime) -> None:
        self.signature, self.run = signature, run
        self._states: Arrays = {}
        self._inside = {after for _, after in signature.states}

    def inputs(self, batch: Batch) -> Arrays:
        """Return the inputs of a batch with the states of the one before."""
        return batch.inputs if batch.first else {**batch.inputs, **self._states}

    def __call__(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of a batch, without states, and keep these."""
        return self.kept(self.run(self.inputs(batch)))

    def kept(self, outputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Keep the states among outputs for the next batch, and return the other outputs."""
        self._states = next_states(self.signature, outputs)
        return {name: values for name, values in outputs.items() if name not in self._inside}


def measure(
    subject: Subject, samples: Samples, scoring: Scoring, reporter: ValidationReporter | None = None
) -> Measurement:
    """Run samples through every runtime.

    The trained model reads the samples of its own processor, batch by batch beside those of the bundle's.

    Raises:
        UsageError: If a runtime returns outputs of another shape.
    """
    trained = subject.trained
    others = samples if trained is None else trained.samples
    work = _Work(subject, scoring, samples.count)
    done = 0
    for batch, other in zip_longest(samples.batches(), others.batches() if trained is not None else ()):
        outputs = {} if batch is None else work.run_bundle(batch)
        if other is not None:
            outputs[TRAINED] = work.run_trained(other, same=batch is not None)
        if batch is None:
            continue
        work.compare(batch, outputs)
        done += work.runtimes.scores[SERVED].values[-1].size
        if reporter is not None:
            reporter.advance(done, samples.count)
    return work.result()


class _Work:
    """The runtimes with their states, and what they have given so far."""

    def __init__(self, subject: Subject, scoring: Scoring, samples: int) -> None:
        signature = subject.signature
        self.subject, self.scoring = subject, scoring
        self.runtimes = RuntimeComparison(subject.runtimes(), subject.pairs(), scoring)
        self.inside = (
            None
            if subject.observable is None or subject.executor is None
            else InsideComparison(subject.observable, signature, subject.provider, subject.replay)
        )
        self.served = Carried(signature, subject.served.run)
        self.others = {
            UNOPTIMIZED: Carried(signature, subject.unoptimized.run),
            **{name: Carried(signature, program) for name, program in subject.formats.items()},
        }
        self.executor = None if subject.executor is None else _Executed(signature, subject.executor)
        self.trained = None if subject.trained is None else Carried(signature, subject.trained.model)
        self.confusion: ConfusionCount | None = None
        self.sampler = None if self.trained is None else OutputSampler(TRAINED, SERVED, samples)
        both = self.trained is not None and self.executor is not None
        self.codes = CodeCount(subject.output_scales) if both else None

    def run_bundle(self, batch: Batch) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Run a batch in the runtimes of the bundle, and compare integers."""
        inputs = self.served.inputs(batch)
        served = self.served(batch)
        outputs = {SERVED: served, **{name: run(batch) for name, run in self.others.items()}}
        if self.executor is not None:
            outputs[EXECUTOR], execution = self.executor(batch)
            if self.inside is not None:
                self.inside.add(inputs, execution, served)
        for name in self.subject.formats:
            _check_shapes(name, outputs[name], served)
        for name, found in outputs.items():
            self.runtimes.score(name, found, batch.targets)
        self.scoring.see(served, batch.targets)
        return outputs

    def run_trained(self, batch: Batch, *, same: bool) -> dict[str, npt.NDArray[Any]]:
        """Run a batch in the trained model; `same` if the bundle has one too."""
        assert self.trained is not None
        outputs = self.trained(batch)
        self.runtimes.score(TRAINED, outputs, batch.targets)
        return outputs if same else {}

    def compare(self, batch: Batch, outputs: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> None:
        """Compare the outputs of a batch."""
        served, trained = outputs[SERVED], outputs.get(TRAINED)
        self.runtimes.add(outputs)
        name = self.scoring.output
        answers = self.scoring.answers(served) if self.scoring.has_classes else None
        if answers is not None:
            self.confusion = self.confusion or ConfusionCount(served[name].shape[-1])
            self.confusion.add(answers, batch.targets)
        if trained is None or self.sampler is None or trained[name].shape != served[name].shape:
            return
        self.sampler.add(trained[name], served[name], self.runtimes.scores[SERVED].values[-1].size)
        if self.codes is not None:
            self.codes.add(trained, outputs[EXECUTOR])

    def result(self) -> Measurement:
        """Return what was collected."""
        inside = self.inside
        return Measurement(
            runtimes=self.runtimes,
            integers=None if inside is None else inside.comparison,
            unoptimized=None if inside is None else inside.unoptimized,
            confusion=None if self.confusion is None else self.confusion.result(),
            output_pairs=None if self.sampler is None else self.sampler.result(),
            notes=() if inside is None else inside.notes(),
            free_running=None if inside is None else inside.free_running,
            boundaries=None if inside is None else inside.boundaries,
            served_outputs=self._served_outputs(),
            session_outputs=None if inside is None else inside.session_outputs.result(),
            trained_codes=None if self.codes is None else self.codes.result(),
        )

    def _served_outputs(self) -> ServedOutputs | None:
        if self.inside is not None and self.inside.outputs is not None:
            return self.inside.outputs.result()
        # with float parts, the free-running executor may compute different integers
        if self.executor is None or self.subject.replay is not None:
            return None
        pairs = self.runtimes.comparisons()
        pair = next(pair for pair in pairs if (pair.first, pair.second) == (EXECUTOR, SERVED))
        return ServedOutputs(self.runtimes.values, pair.other_values, pair.worst_difference)


class _Executed:
    """The integer model, which carries its states from batch to batch."""

    def __init__(self, signature: Signature, model: ExecutedGraph) -> None:
        self.model = model
        self._carried = Carried(signature, self._run)
        self._last: Execution | None = None

    def __call__(self, batch: Batch) -> tuple[dict[str, npt.NDArray[Any]], Execution]:
        outputs = self._carried(batch)
        assert self._last is not None
        return outputs, self._last

    def _run(self, inputs: Arrays) -> Arrays:
        self._last = self.model.run(inputs)
        return self._last.outputs


def _check_shapes(name: str, outputs: Arrays, like: Arrays) -> None:
    ours, theirs = ({key: values.shape for key, values in each.items()} for each in (outputs, like))
    if ours != theirs:
        raise UsageError(
            f"Expected {name} to return outputs of the shapes {theirs}, but got {ours}",
            hint="export the bundle again",
        )
