"""Sweep: export, validate and time one run at several bits, and compare the results."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.tasks import SILENT, ExportOptions, Reporter, SweptRun, Table, Task, ValidationOptions, task_of_run
from cpt_deploy.tasks.exporting import TRAINED_DIGEST
from cpt_deploy.tasks.interface import Entry
from cpt_deploy.workflows.bit_allocation import bits_trained_at, folder_name, given_bits
from cpt_deploy.workflows.export import export_run
from cpt_deploy.workflows.validation import validate_bundle

if TYPE_CHECKING:
    from cpt_deploy.report import SweepPoint

FOLDER = "sweep"
REPORT, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.png"
USUAL_BITS = (8, 6, 5, 4, 3)


@dataclass(frozen=True)
class Sweep:
    """Result of a sweep.

    Args:
        folder: Directory of its bundles, table, figures and plot.
        content: Content of sweep.json.
        table: The same as a table.
    """

    folder: Path
    content: Mapping[str, Any]
    table: Table


def sweep_run(  # noqa: PLR0913  the options of a sweep
    run_dir: Path,
    *,
    bits: Sequence[int] | None = None,
    activation_bits: Sequence[int | None] | None = None,
    rounds: int = 50,
    force: bool = False,
    native: bool = False,
    data_dir: Path | None = None,
    limit: int | None = None,
    reporter: Reporter = SILENT,
) -> Sweep:
    """Export, validate and time a run at several bits; write table, figures and plot into `RUN/sweep`.

    Bundles that an earlier sweep of the same weights exported and validated are kept; only latency is measured again.

    Args:
        run_dir: The run.
        bits: Bits of the weights; None is those of 8, 6, 5, 4 and 3 that the run trained at.
        activation_bits: Bits of the scheduled activations to combine them with, where an entry None is the bits of the
            weights; None is the run's max_bits.
        rounds: Number of timed calls of each model.
        force: Whether to export at bits that the run never trained at.
        native: Whether weights keep their full range.
        data_dir: Folder of the data; None is the recipe's.
        limit: Number of samples of the test set; None is all.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If the run never trained at some of the bits and `force` is not set; nothing is written then.
        CptError: As export and validation do.
    """
    task = task_of_run(run_dir)
    swept = task.sweep(run_dir, data_dir, limit)
    run = swept.run
    chosen = bits or [b for b in USUAL_BITS if b in bits_trained_at(run)] or [run.recipe.precision.max_bits]
    pairs = list(dict.fromkeys((b, a or b) for a in activation_bits or [run.recipe.precision.max_bits] for b in chosen))
    for pair in pairs:
        given_bits(run, *pair, force=force)
    root = data_dir or (Path(run.recipe.data.root) if run.recipe.data.root else None)
    validation = ValidationOptions(
        run.recipe.data.name,
        data_dir=root,
        run=run_dir,
        limit=limit,
        no_gate=True,  # a sweep shows the drop without judging it
        require_exact=False,
    )
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    bundles: list[tuple[Bundle, bool]] = []
    with reporter.bar("sweeping", len(pairs)) as bar:
        for done, (weights, activations) in enumerate(pairs):
            bar.advance(done, detail=f"weights {weights} bits, activations {activations}")
            options = ExportOptions(bits=weights, activation_bits=activations, force=force, native=native)
            name = folder_name(f"{weights}bit", activations, run.recipe.precision.max_bits) + options.suffix
            known = _known(task, swept, folder / name, (weights, activations))
            if known is None:
                export_run(run_dir, options, destination=folder / name, data_dir=data_dir, reporter=reporter)
                validate_bundle(folder / name, validation, reporter=reporter)
            else:
                reporter.note(f"{readable.path(folder / name)} is exported and validated already")
            bundles.append((known or task.open_bundle(folder / name), known is not None))
        bar.advance(len(pairs))
    reporter.note(f"timing {len(bundles)} exports in turn, {rounds} rounds")
    content = _measure(swept, pairs, bundles, rounds)
    rows = tuple(swept.row(entry, content) for entry in content["exports"])
    table = Table(swept.columns, rows, swept.summary(content))
    _write(folder, swept, content, table)
    return Sweep(folder, content, table)


def _known(task: Task[Any], swept: SweptRun[Any], path: Path, bits: tuple[int, int]) -> Bundle | None:
    """Return a bundle that is exported and validated already with the same options; None if there is none."""
    from cpt_deploy.validation import software_versions

    try:
        bundle: Bundle = task.open_bundle(path)
    except BundleError:
        return None
    facts, validation = bundle.facts, bundle.validation
    same = (
        validation is not None
        and facts.get(TRAINED_DIGEST) == swept.run.weights_sha256
        and (facts["weight_bits"], facts["activation_bits"]) == bits
        and validation["model_sha256"] == bundle.sha256
        and validation["dataset"]["samples"] == swept.samples
        and validation["versions"] == software_versions()
    )
    return bundle if same else None


def _measure(
    swept: SweptRun[Any], pairs: Sequence[tuple[int, int]], bundles: Sequence[tuple[Bundle, bool]], rounds: int
) -> dict[str, Any]:
    from cpt_deploy.validation import read_cpu, software_versions

    reference, times = swept.compare([bundle for bundle, _ in bundles], rounds)
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
                **swept.figures(bundle),
                "mismatching_integers": integers["mismatching"],
                "compared_integers": integers["compared"],
                "onnx_bytes": bundle.onnx_path.stat().st_size,
                "weights_bytes": _weights_bytes(bundle),
                **timed,
            }
        )
    dataset = next(bundle.validation["dataset"] for bundle, _ in bundles if bundle.validation is not None)
    return {
        "run": swept.run.recipe.name,
        TRAINED_DIGEST: swept.run.weights_sha256,
        "dataset": dataset,
        **reference,
        "exports": entries,
        "cpu": asdict(read_cpu()),
        "versions": software_versions(),
    }


def _weights_bytes(bundle: Bundle) -> int:
    """Return the size of all weights if each was stored in exactly its bits."""
    return sum(-(-math.prod(w["shape"]) * w["bits"] // 8) for w in bundle.quantization["weights"])


def _write(folder: Path, swept: SweptRun[Any], document: Mapping[str, Any], table: Table) -> None:
    from cpt_deploy.report import plot_sweep

    plot_sweep(
        [_point(swept, entry) for entry in document["exports"]],
        folder / PLOT,
        title=f"{document['run']}: one run at several bits of weights",
        size_label="weights at their bits",
        quality_label=swept.quality_label,
        latency_label=swept.latency_label,
        trained=swept.trained_quality(document),
    )
    lines = ["| " + " | ".join(row) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "|" + "---|" * len(table.columns))
    (folder / TABLE).write_text(f"{table.title}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _point(swept: SweptRun[Any], entry: Entry) -> "SweepPoint":
    from cpt_deploy.report import SweepPoint

    weights, activations = entry["weight_bits"], entry["activation_bits"]
    quality, low, high = swept.quality(entry)
    return SweepPoint(
        label=f"{weights}",
        series="activations at the weights' bits"
        if activations == weights != swept.run.recipe.precision.max_bits
        else f"activations at {activations} bits",
        quality=quality,
        low=low,
        high=high,
        kilobytes=entry["weights_bytes"] / 1e3,
        milliseconds=entry["milliseconds"],
    )
