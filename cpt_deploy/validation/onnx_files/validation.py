"""Validate a quantized ONNX file of any tool: every integer, other runtimes, agreement with its float source."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.runtime.cpu import CpuInfo, read_cpu
from cpt_deploy.bundle.runtime.sessions import is_portable, may_saturate, open_session
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.validation.accuracy.agreement import Agreement, DetectionFacts, OutputAgreementFacts
from cpt_deploy.validation.accuracy.statistics import Proportion, wilson_interval
from cpt_deploy.validation.integers.comparison import TensorResult
from cpt_deploy.validation.measuring import ValidationReporter
from cpt_deploy.validation.onnx_files.files import Arrays, OnnxFile, batches, example_inputs, tensors_of
from cpt_deploy.validation.onnx_files.inspection import Inspection, inspect_file
from cpt_deploy.validation.onnx_files.replay import Replay, Replayed
from cpt_deploy.validation.onnx_files.rules import IGNORED_AXIS
from cpt_deploy.validation.onnx_files.unoptimized import Unoptimized
from cpt_deploy.validation.performance.relative_time import RelativeTime, relative_time
from cpt_deploy.validation.performance.software import software_versions

LABELS = "labels"
"""Name of the array with the right classes, beside the inputs."""
_RANDOM_ROWS = 16


@dataclass(frozen=True)
class FileReport:
    """The findings of a validation of an ONNX file.

    Args:
        inspection: The file, and what to change in it.
        sha256: Its digest, hexadecimal.
        data: Name of the file of inputs; `None` if inputs were random.
        rows: Number of rows, or calls of a file without a free batch.
        served: Integers as this project serves the file, against exact arithmetic. Here none may differ.
        default_kernels: The same in a program without this project's session options, on a processor that may
            saturate; `None` if that makes no difference here.
        unoptimized: Integers with onnxruntime's optimizations off against those with them on.
        hidden: Tensors that could not be compared in that.
        unoptimized_outputs: Agreement of the outputs of both.
        finite: Whether every output was a finite number.
        agreement: Agreement of the outputs with the float source's; `None` without one.
        detection: Agreement of its boxes, if it is a detector; `None` without a float source.
        accuracy: Share of right labels; `None` without labels.
        source_accuracy: That of the float source.
        latency: Against the float source; `None` without one.
        cpu: The processor.
        versions: Versions of the software.
        validated_at: Time, ISO 8601 in UTC.
    """

    inspection: Inspection
    sha256: str
    data: str | None
    rows: int
    served: Replayed
    default_kernels: Replayed | None
    unoptimized: tuple[TensorResult, ...]
    hidden: tuple[str, ...]
    unoptimized_outputs: tuple[OutputAgreementFacts, ...]
    finite: bool
    agreement: tuple[OutputAgreementFacts, ...] | None
    detection: DetectionFacts | None
    accuracy: Proportion | None
    source_accuracy: Proportion | None
    latency: RelativeTime | None
    cpu: CpuInfo
    versions: dict[str, str]
    validated_at: str

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the file fails."""
        served, first = self.served, next((entry for entry in self.served.operators if entry.mismatches), None)
        found = []
        if not served.compared:
            found.append("no integers were compared")
        if first is not None:
            found.append(
                f"{served.mismatches:,} of {served.compared:,} integers differ from exact arithmetic, first in "
                f"{first.name} ({first.operator}, stretch {first.stretch})"
            )
        if not served.reproduced:
            found.append("the session whose integers were compared has other outputs than the one that serves the file")
        found += [
            f"onnxruntime ignores the axis of the scales of {', '.join(finding.where)}: its results are not the file's"
            for finding in self.inspection.findings
            if finding.rule == IGNORED_AXIS
        ]
        if not self.finite:
            found.append("outputs are not finite")
        found += [
            f"the sums of {layer.name} can reach {layer.worst_sum:,}, which int32 does not hold"
            for layer in self.inspection.layers
            if layer.overflows
        ]
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be compared, and what to know about the comparisons."""
        found = [self.inspection.note] if self.inspection.note else []
        if self.served.unknown:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.served.unknown.items())
            found.append(f"not recomputed, since their exact arithmetic is not known: {kinds}")
        if self.hidden:
            found.append(
                f"{len(self.hidden)} tensors were not compared with optimizations off: as outputs they would change "
                f"the optimized graph ({', '.join(self.hidden[:3])}{', …' if len(self.hidden) > 3 else ''})"
            )
        integer_operators = any(name.startswith("QLinear") for name in self.inspection.operators)
        if self.default_kernels is not None and integer_operators:
            found.append("with optimizations off, this processor runs the kernels that saturate")
        if self.data is None:
            found.append("inputs were random; give real ones: --data inputs.npz")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether the file passes."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        replays = {
            name: None
            if each is None
            else {"compared": each.compared, "mismatching": each.mismatches, "stretches": each.stretches}
            for name, each in (("served", self.served), ("default_kernels", self.default_kernels))
        }
        fields = asdict(self)
        for name, counts in replays.items():
            if counts is not None:
                fields[name] |= counts
        return {
            **fields,
            "inspection": self.inspection.to_dict(),
            "verdict": "passed" if self.passed else "failed",
            "passed": self.passed,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }


def validate_file(
    file: OnnxFile,
    data: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    data_name: str | None = None,
    source: OnnxFile | None = None,
    reporter: ValidationReporter | None = None,
) -> FileReport:
    """Validate a file on inputs.

    Args:
        file: The file.
        data: Inputs by name, (rows, ...) each, and perhaps `labels`, (rows,); `None` draws random inputs.
        data_name: Name of the data in the report.
        source: The float model that it was made from.
        reporter: Receives the progress.

    Raises:
        UsageError: If the file has no integers, or the data or the source do not fit it.
        BundleError: If onnxruntime cannot run it.
    """
    inspection = inspect_file(file)
    if not inspection.quantized:
        raise UsageError(
            f"Expected a quantized file, but nothing in {file.path.name} is computed on integers",
            hint=f"cpt inspect {file.path} says why; cpt export --from {file.path} --data inputs.npz quantizes it",
        )
    calls = list(_calls(file, data))
    work = _Work(file, source)
    for done, (inputs, labels) in enumerate(calls):
        work.add(inputs, labels)
        if reporter is not None:
            reporter.advance(done + 1, len(calls))
    if not calls:
        raise UsageError("Expected inputs for at least one call of the file, but got fewer rows than it takes")
    return FileReport(
        inspection=inspection,
        sha256=file.sha256,
        data=data_name,
        rows=sum(_length(inputs) for inputs, _ in calls),
        served=work.served.result(),
        default_kernels=None if work.default is None else work.default.result(),
        unoptimized=work.unoptimized.results(),
        hidden=work.unoptimized.hidden,
        unoptimized_outputs=work.unoptimized_outputs.results(),
        finite=work.finite,
        agreement=None if source is None else work.agreement.results(),
        detection=work.agreement.detection(),
        accuracy=_accuracy(work.right["file"]),
        source_accuracy=_accuracy(work.right["source"]),
        latency=None if source is None else relative_time(_alone(file), _alone(source), calls[0][0]),
        cpu=read_cpu(),
        versions=software_versions(),
        validated_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Work:
    """The sessions of a validation, and what they have given so far."""

    def __init__(self, file: OnnxFile, source: OnnxFile | None) -> None:
        self.session = open_session(file.content, where=str(file.path), threads=None)
        self.source = None if source is None else open_session(source.content, where=str(source.path), threads=None)
        if self.source is not None:
            _check_source(self.session, self.source)
        self.served = Replay(file.optimized())
        differs = may_saturate() and not is_portable(file.content)
        self.default = Replay(file.optimized(exact_sums=False)) if differs else None
        self.unoptimized = Unoptimized(file)
        self.agreement, self.unoptimized_outputs = Agreement(), Agreement()
        self.right: dict[str, list[bool]] = {"file": [], "source": []}
        self.finite = True

    def add(self, inputs: Arrays, labels: npt.NDArray[Any] | None) -> None:
        """Run a call in every session."""
        outputs = _run(self.session, inputs)
        self.finite &= all(bool(np.isfinite(v).all()) for v in outputs.values() if v.dtype.kind == "f")
        self.served.add(inputs, outputs)
        if self.default is not None:
            self.default.add(inputs, {})
        self.unoptimized_outputs.add(outputs, self.unoptimized.add(inputs))
        runs = {"file": outputs}
        if self.source is not None:
            runs["source"] = _run(self.source, inputs)
            self.agreement.add(runs["source"], outputs)
        if labels is not None:
            for name, results in runs.items():
                found = _classes(results)
                if found.shape != labels.shape:
                    raise UsageError(
                        f"Expected an output with a row for each of {len(labels)} {LABELS}, but got {len(found)} rows"
                    )
                self.right[name] += list(found == labels)


def _alone(file: OnnxFile) -> Any:
    """Return a session of one thread, to be timed in turn with another."""
    return open_session(file.content, where=str(file.path), rest_between_runs=True)


def _run(session: Any, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    names = [output.name for output in session.get_outputs()]
    try:
        return tensors_of(names, session.run(names, inputs))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = str(error).strip().partition("\n")[0]
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
        raise DataError(f"Expected the file to run on {shapes}, but got: {reason}") from error


def _classes(outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    for values in outputs.values():
        if values.ndim == 2 and values.shape[1] > 1:
            classes: npt.NDArray[Any] = values.argmax(axis=1)
            return classes
    raise UsageError(f"Expected no {LABELS} for a file without an output of rows and classes, but got them")


def _calls(
    file: OnnxFile, data: Mapping[str, npt.NDArray[Any]] | None
) -> Iterator[tuple[Arrays, npt.NDArray[Any] | None]]:
    if data is None:
        rows = _RANDOM_ROWS if file.free_batch else 1
        yield from ((example_inputs(file, rows, seed), None) for seed in range(2))
        return
    names = file.input_names
    if data.keys() - {LABELS} != {*names} - {LABELS} or not names:
        raise UsageError(f"Expected arrays {', '.join(names)}, but got {', '.join(data) or 'none'}")
    labels = data.get(LABELS) if LABELS not in names else None
    lengths = {name: len(data[name]) for name in names if data[name].ndim}
    if file.free_batch and len({*lengths.values()}) > 1:
        found = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise UsageError(f"Expected equally many rows of each input, but got {found}")
    rows = min(lengths.values(), default=1)
    if labels is not None and labels.shape != (rows,):
        raise UsageError(f"Expected {LABELS} of shape ({rows},), one for each row, but got {labels.shape}")
    if labels is not None and labels.dtype.kind not in "iu":
        raise UsageError(f"Expected {LABELS} that are numbers of classes, but got {labels.dtype}")
    start = 0
    for inputs in batches(file, {name: data[name] for name in names}):
        end = start + _length(inputs)
        yield inputs, None if labels is None else labels[start:end]
        start = end


def _length(inputs: Arrays) -> int:
    return min((len(array) for array in inputs.values() if array.ndim), default=1)


def _check_source(session: Any, source: Any) -> None:
    ours, theirs = ({each.name: each.type for each in s.get_inputs()} for s in (session, source))
    if ours != theirs:
        raise UsageError(
            f"Expected a float source with the inputs {', '.join(ours)}, but got {', '.join(theirs)}",
            hint="--float names the model that the file was quantized from",
        )


def _accuracy(right: list[bool]) -> Proportion | None:
    return wilson_interval(int(sum(right)), len(right)) if right else None
