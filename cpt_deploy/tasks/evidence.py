"""Options and results of a validation, for every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpt_deploy.validation import LayerSaturation, Portability

WITHOUT_VNNI = "on x86 processors without VNNI"


@dataclass(frozen=True)
class ValidationOptions:
    """Options of a validation.

    Args:
        data: Name, path or import path of the data to measure on.
        data_dir: Folder of the data.
        run: The run to compare with; None is the run whose directory contains the bundle, if any.
        source: The float model to compare a calibrated bundle with; None is the one in a folder around the bundle, if
            any.
        limit: Number of samples; None is all.
        max_drop: Maximum allowed drop from the trained model to onnxruntime: points of accuracy, percent of perplexity;
            None is 0.5 if there is a model to compare with.
        no_gate: Whether to skip the judgement of the drop.
        allow_undecided: Whether to pass if the samples are too few to decide whether the drop is allowed.
        require_exact: Whether all integers must agree; None requires it on a CPU with torch and onnx.
        provider: Execution provider of onnxruntime.
        page: Path of an additional HTML page of the evidence.
    """

    data: str
    data_dir: Path | None = None
    run: Path | None = None
    source: Path | None = None
    limit: int | None = None
    max_drop: float | None = None
    no_gate: bool = False
    allow_undecided: bool = False
    require_exact: bool | None = None
    provider: str = "cpu"
    page: Path | None = None


@dataclass(frozen=True)
class Origin:
    """The run or float model that a bundle was made from and is compared with, if available.

    Args:
        run: The run.
        source: The file of the float model.
    """

    run: Path | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Table:
    """A table to print: a title, names of columns, and rows of cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str


@dataclass(frozen=True)
class ValidationSummary:
    """Results of a validation in words.

    Args:
        table: Measurements of each runtime.
        facts: Further results, by name.
        notes: Measurements that were skipped, and why.
    """

    table: Table
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Result of a validation.

    Args:
        passed: Whether the bundle may be served.
        verdict: "passed", "failed" or "undecided".
        reasons: Why it failed.
        undecided: Questions that these samples cannot decide.
        content: Content of validation.json.
        summary: The same in words.
        report: The report as an object.
        page: The HTML page of the evidence, if one was written.
    """

    passed: bool
    verdict: str
    reasons: Sequence[str]
    undecided: Sequence[str]
    content: Mapping[str, Any]
    summary: ValidationSummary
    report: Any
    page: Path | None = None


@dataclass(frozen=True)
class BundleCheck:
    """Result of checking a bundle without data: its golden sample, its constants, the bounds of its sums.

    Args:
        reasons: Why it fails; empty if it passes.
        statement: Result of the golden sample, as a sentence.
        content: The figures, by name.
        portability: Behaviour on processors without VNNI, as a sentence, if the bundle is declared portable.
    """

    reasons: Sequence[str]
    statement: str
    content: Mapping[str, Any]
    portability: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the bundle passes."""
        return not self.reasons


def saturation_in_words(
    layers: "Sequence[LayerSaturation]", portability: "Portability | None", *, saturates_here: bool | None = None
) -> str:
    """Describe the behaviour on x86 processors without VNNI.

    Args:
        layers: The verdict on each layer of a bundle.
        portability: Ranges that were reduced, if the bundle was exported to be portable.
        saturates_here: Whether this processor is one of them; None if unknown.
    """
    hazard = sum(layer.possible for layer in layers)
    if hazard:
        here = {True: ", as on this one", False: ", unlike this one", None: ""}[saturates_here]
        return (
            f"{hazard} of {len(layers)} layers need onnxruntime's slower exact kernels{here} "
            "(exported with --native; without it none would)"
        )
    if portability is None:
        return "nothing can saturate"
    given_up = f"smaller range in {portability.channels} channels of {len(portability.reduced)} layers"
    return f"nothing can saturate (portable: {given_up if portability.reduced else 'no range had to be reduced'})"
