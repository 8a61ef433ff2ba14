"""What a validation is asked for and what comes of it, whatever the task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpt_deploy.validation import LayerSaturation, Portability

WITHOUT_VNNI = "on x86 processors without VNNI"


@dataclass(frozen=True)
class ValidationOptions:
    """What a validation can be asked for.

    Args:
        data: Name, path or import path of the data to measure on.
        data_dir: Folder that holds them.
        run: The run to compare with; the one that the bundle lies in, if there is one, if None.
        source: The float model to compare a calibrated bundle with; the one that lies around it, if there is one, if
            None.
        limit: How many samples; all if None.
        max_drop: Most that may be lost from the trained model to onnxruntime: points of accuracy, percent of
            perplexity; 0.5 if there is something to compare with if None.
        no_gate: Whether nothing that is lost is judged.
        allow_undecided: Whether samples that cannot tell what is lost from what is allowed pass.
        require_exact: Whether every integer must agree; on a CPU with torch and onnx if None.
        provider: Execution provider of onnxruntime.
        page: Where to write the page of the evidence too.
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
    """What a bundle was made from and is compared with, as far as it is here.

    Args:
        run: The run.
        source: The file of the float model.
    """

    run: Path | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Table:
    """A table for people: a title, names of columns, and rows of cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str


@dataclass(frozen=True)
class ValidationSummary:
    """What a validation found, for people.

    Args:
        table: What was measured of each runtime.
        facts: What else was found, by name.
        statement: What stands behind the verdict, where that is a sentence.
        lines: Further sentences.
        notes: What was not measured, and why.
    """

    table: Table
    facts: Mapping[str, str] = field(default_factory=dict)
    statement: str = ""
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What came of a validation.

    Args:
        passed: Whether the bundle may be served.
        verdict: "passed", "failed" or "undecided".
        reasons: Why it failed.
        undecided: What these samples cannot tell.
        content: What validation.json holds.
        summary: The same for people.
        report: What the task's own validation gives, for programs that want more.
        page: The page of the evidence, if one was drawn.
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
    """What a bundle says of itself, without any data: its golden sample, its constants, the bounds of its sums.

    Args:
        reasons: Why it fails; empty if it does not.
        statement: What was reproduced, as a sentence.
        content: The figures, by name.
        portability: What happens on processors without VNNI, as a sentence, if the bundle says that it is portable.
    """

    reasons: Sequence[str]
    statement: str
    content: Mapping[str, Any]
    portability: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons


def saturation_in_words(
    layers: "Sequence[LayerSaturation]", portability: "Portability | None", *, saturates_here: bool | None = None
) -> str:
    """Return what happens on x86 processors without VNNI.

    Args:
        layers: The verdict on each layer of a bundle.
        portability: What the bundle gave up, if it was exported to be portable.
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
