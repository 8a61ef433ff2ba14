"""A family of exports from one run: each exported, validated and timed, side by side."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cpt_cli import formats
from cpt_cli.output import out
from cpt_cli.widths import bits_trained_at, folder_name, given_widths
from cpt_cli.workflow import TRAINED_DIGEST, ExportOptions
from cpt_deploy.errors import BundleError

if TYPE_CHECKING:
    from cpt_deploy.bundle.opened import OpenedBundle
    from cpt_deploy.report import FamilyMember
    from cpt_deploy.training import TrainedLanguageModel, TrainedRun

FOLDER = "sweep"
REPORT, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.png"
USUAL_BITS = (8, 6, 5, 4, 3)

Entry = Mapping[str, Any]
"""What sweep.json says of an export: its bits, its bundle, and what was measured of it."""


class Family(Protocol):
    """What a sweep needs to know of a kind of model.

    Attributes:
        columns: Of the table, as `row` fills them.
        quality_label: What the plot's y axis is, with its unit.
        latency_label: What is timed.
    """

    columns: tuple[str, ...]
    quality_label: str
    latency_label: str

    @property
    def run(self) -> "TrainedRun | TrainedLanguageModel":
        """The run."""

    @property
    def samples(self) -> int:
        """How much of the test set a validation measures."""

    def open(self, path: Path) -> "OpenedBundle":
        """Open a bundle.

        Raises:
            BundleError: If there is none.
        """

    def export(self, path: Path, options: ExportOptions) -> None:
        """Write the bundle."""

    def validate(self, path: Path) -> None:
        """Measure a bundle and store the report in it; a sweep shows what is lost, it is no gate."""

    def figures(self, bundle: "OpenedBundle") -> dict[str, Any]:
        """Return what sweep.json says of a validated bundle, beside its bits, sizes and integers."""

    def compare(self, bundles: Sequence["OpenedBundle"], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Time all in turn, and return what sweep.json says of what they are compared with, and of each."""

    def summary(self, document: Mapping[str, Any]) -> str:
        """Return what the table is of, as one line."""

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """Return an export as a row of the table."""

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return an export's place on the plot's y axis, with the ends of its interval."""

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """Return the same of the trained model at its upper bound."""


def sweep_run(
    family: Family,
    *,
    bits: Sequence[int] | None,
    activation_bits: Sequence[int | None] | None,
    rounds: int,
    force: bool,
    native: bool = False,
) -> dict[str, Any]:
    """Export, validate and time a run at several bits; write table, figures and plot into `RUN/sweep`.

    Args:
        family: The run, and how its kind of model is exported and measured.
        bits: Bits of the weights; those of 8, 6, 5, 4 and 3 that the run trained at if None.
        activation_bits: Bits of the cycling activations to combine them with, where None stands for those of the
            weights; the run's upper bound if None.
        rounds: Timed calls of each model.
        force: Whether to export at bits that the run never trained at.
        native: Whether weights keep their whole range.

    Returns:
        What sweep.json holds.

    Raises:
        UsageError: If the run never trained at some of the bits and `force` is not set; nothing is written then.
        CptError: As export and validation do.
    """
    run = family.run
    chosen = bits or [b for b in USUAL_BITS if b in bits_trained_at(run)] or [run.recipe.precision.upper]
    pairs = list(dict.fromkeys((b, a or b) for a in activation_bits or [run.recipe.precision.upper] for b in chosen))
    for pair in pairs:
        given_widths(run, *pair, force=force)
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    bundles: list[tuple[OpenedBundle, bool]] = []
    with out.bar("sweeping", len(pairs)) as bar:
        for done, (weights, activations) in enumerate(pairs):
            bar.advance(done, detail=f"weights {weights} bits, activations {activations}")
            options = ExportOptions(bits=weights, activation_bits=activations, force=force, native=native)
            bundles.append(_member(family, folder, weights, activations, options))
        bar.advance(len(pairs))
    document = _measure(family, pairs, bundles, rounds)
    _write(folder, family, document)
    return document


def _member(
    family: Family, folder: Path, weights: int, activations: int, options: ExportOptions
) -> tuple["OpenedBundle", bool]:
    """Return a validated bundle, and whether it was there already."""
    from cpt_deploy.validation import software_versions

    run = family.run
    path = folder / f"{folder_name(f'{weights}bit', activations, run.recipe.precision.upper)}{options.suffix}"
    try:
        bundle = family.open(path)
    except BundleError:
        bundle = None
    if bundle is not None and bundle.validation is not None:
        facts, validation = bundle.facts, bundle.validation
        same = (
            facts.get(TRAINED_DIGEST) == run.weights_sha256
            and (facts["weight_bits"], facts["activation_bits"]) == (weights, activations)
            and validation["model_sha256"] == bundle.sha256
            and validation["dataset"]["samples"] == family.samples
            and validation["versions"] == software_versions()
        )
        if same:
            out.note(f"{formats.path(path)} is exported and validated already")
            return bundle, True
    family.export(path, options)
    family.validate(path)
    return family.open(path), False


def _measure(
    family: Family, pairs: Sequence[tuple[int, int]], bundles: Sequence[tuple["OpenedBundle", bool]], rounds: int
) -> dict[str, Any]:
    from cpt_deploy.validation import read_cpu, software_versions

    out.note(f"timing {len(bundles)} exports in turn, {rounds} rounds")
    reference, times = family.compare([bundle for bundle, _ in bundles], rounds)
    entries = []
    for (weights, activations), (bundle, reused), timed in zip(pairs, bundles, times, strict=True):
        assert bundle.validation is not None
        integers = bundle.validation["integers"] or {"mismatching": None, "compared": 0}
        entries.append(
            {
                "weight_bits": weights,
                "activation_bits": activations,
                "bundle": bundle.path.name,
                "reused": reused,
                **family.figures(bundle),
                "mismatching_integers": integers["mismatching"],
                "compared_integers": integers["compared"],
                "onnx_bytes": bundle.onnx_path.stat().st_size,
                "weights_bytes": _weights_bytes(bundle),
                **timed,
            }
        )
    dataset = next(bundle.validation["dataset"] for bundle, _ in bundles if bundle.validation is not None)
    return {
        "run": family.run.recipe.name,
        TRAINED_DIGEST: family.run.weights_sha256,
        "dataset": dataset,
        **reference,
        "exports": entries,
        "cpu": asdict(read_cpu()),
        "versions": software_versions(),
    }


def _weights_bytes(bundle: "OpenedBundle") -> int:
    """Return the size of all weights if each took no more than its bits."""
    return sum(-(-math.prod(w["shape"]) * w["bits"] // 8) for w in bundle.quantization["weights"])


def _write(folder: Path, family: Family, document: Mapping[str, Any]) -> None:
    from cpt_deploy.report import plot_family

    plot_family(
        [_point(family, entry) for entry in document["exports"]],
        folder / PLOT,
        title=f"{document['run']}: one run at several bits of weights",
        size_label="weights at their bits",
        quality_label=family.quality_label,
        latency_label=family.latency_label,
        trained=family.trained_quality(document),
    )
    rows = [family.row(entry, document) for entry in document["exports"]]
    lines = ["| " + " | ".join(row) + " |" for row in (family.columns, *rows)]
    lines.insert(1, "|" + "---|" * len(family.columns))
    (folder / TABLE).write_text(f"{family.summary(document)}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _point(family: Family, entry: Entry) -> "FamilyMember":
    from cpt_deploy.report import FamilyMember

    weights, activations = entry["weight_bits"], entry["activation_bits"]
    quality, low, high = family.quality(entry)
    return FamilyMember(
        label=f"{weights}",
        series="activations at the weights' bits"
        if activations == weights != family.run.recipe.precision.upper
        else f"activations at {activations} bits",
        quality=quality,
        low=low,
        high=high,
        kilobytes=entry["weights_bytes"] / 1e3,
        milliseconds=entry["milliseconds"],
    )


def bits_cells(entry: Entry) -> tuple[str, str]:
    """Return the cells of a table that tell bits."""
    return f"{entry['weight_bits']} bits", f"{entry['activation_bits']} bits"


def integers_cell(entry: Entry) -> str:
    """Return the cell that tells how many integers differ between executor and onnxruntime."""
    if entry["mismatching_integers"] is None:
        return "not compared"
    return f"{entry['mismatching_integers']} of {entry['compared_integers']:,}"
