"""Sweep: export, validate and time one run at several bits, and compare the results."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.metric import Metric
from cpt_deploy.tasks import SILENT, ExportOptions, Reporter, Table, Task, ValidationOptions, task_of_run
from cpt_deploy.tasks.exporting import MAX_BITS, TRAINED_DIGEST, folder_name
from cpt_deploy.workflows.bit_allocation import bits_trained_at, given_bits
from cpt_deploy.workflows.export import export_run
from cpt_deploy.workflows.validation import validate_bundle

if TYPE_CHECKING:
    from cpt_deploy.report import SweepPoint
    from cpt_deploy.training import TrainedRun
    from cpt_deploy.validation import Samples

FOLDER = "sweep"
REPORT, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.png"
USUAL_BITS = (8, 6, 5, 4, 3)
FLOAT = "float32"

Entry = Mapping[str, Any]
"""Entry of sweep.json for an export: its bits, its bundle, and its measurements."""


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
    from cpt_deploy.tasks.run_export import begin_export

    task = task_of_run(run_dir)
    run = begin_export(task, run_dir, ExportOptions(), data_dir).run
    max_bits = min(run.recipe.precision.max_bits, MAX_BITS)
    chosen = bits or [b for b in USUAL_BITS if b in bits_trained_at(run)] or [max_bits]
    pairs = list(dict.fromkeys((b, a or b) for a in activation_bits or [max_bits] for b in chosen))
    for pair in pairs:
        given_bits(run, *pair, force=force)
    root = Path(run.recipe.data.root) if run.recipe.data.root else None
    samples = task.samples(run.recipe.data.name, root, run.processor, run.model.signature, limit)
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
            name = folder_name(f"{weights}bit", activations, max_bits) + options.suffix
            known = _known(run, samples, folder / name, (weights, activations))
            if known is None:
                export_run(run_dir, options, destination=folder / name, data_dir=data_dir, reporter=reporter)
                validate_bundle(folder / name, validation, reporter=reporter)
            else:
                reporter.note(f"{readable.path(folder / name)} is exported and validated already")
            bundles.append((known or Bundle.open(folder / name), known is not None))
        bar.advance(len(pairs))
    reporter.note(f"timing {len(bundles)} exports in turn, {rounds} rounds")
    content = _measure(task, run, samples, pairs, bundles, rounds)
    table = _table(task, content)
    _write(folder, task, content, table)
    return Sweep(folder, content, table)


def _known(run: "TrainedRun", samples: "Samples", path: Path, bits: tuple[int, int]) -> Bundle | None:
    """Return a bundle that is exported and validated already with the same options; None if there is none."""
    from cpt_deploy.validation import software_versions

    try:
        bundle = Bundle.open(path)
    except BundleError:
        return None
    facts, validation = bundle.facts, bundle.validation
    same = (
        validation is not None
        and facts.get(TRAINED_DIGEST) == run.weights_sha256
        and (facts["weight_bits"], facts["activation_bits"]) == bits
        and validation["model_sha256"] == bundle.sha256
        and all(
            validation["dataset"][key] == value
            for key, value in (
                ("name", samples.name),
                ("split", samples.split),
                ("sha256", samples.sha256),
                ("samples", samples.count),
            )
        )
        and validation["versions"] == software_versions()
    )
    return bundle if same else None


def _measure(
    task: Task,
    run: "TrainedRun",
    samples: "Samples",
    pairs: Sequence[tuple[int, int]],
    bundles: Sequence[tuple[Bundle, bool]],
    rounds: int,
) -> dict[str, Any]:
    from cpt_deploy.validation import read_cpu, software_versions

    metric = run.report.metric
    reference, times = _times(task, run, samples, [bundle for bundle, _ in bundles], rounds)
    entries = []
    for (weights, activations), (bundle, reused), timed in zip(pairs, bundles, times, strict=True):
        assert bundle.validation is not None
        integers = bundle.validation["integers"] or {"mismatching": None, "compared": 0}
        runtimes = {runtime["name"]: runtime for runtime in bundle.validation["runtimes"]}
        served, trained = runtimes["onnxruntime"], runtimes.get("trained", {})
        entries.append(
            {
                "weight_bits": weights,
                "activation_bits": activations,
                "bundle": bundle.path.name,
                "reused": reused,
                metric.name: served[metric.name],
                "interval_95": served.get("interval_95"),
                f"trained_{metric.name}": trained.get(metric.name),
                "mismatching_integers": integers["mismatching"],
                "compared_integers": integers["compared"],
                "onnx_bytes": bundle.onnx_path.stat().st_size,
                "weights_bytes": _weights_bytes(bundle),
                **timed,
            }
        )
    dataset = next(bundle.validation["dataset"] for bundle, _ in bundles if bundle.validation is not None)
    return {
        "run": run.recipe.name,
        "max_bits": run.recipe.precision.max_bits,
        TRAINED_DIGEST: run.weights_sha256,
        "dataset": dataset,
        "metric": metric.to_dict(),
        f"trained_{metric.name}": entries[0][f"trained_{metric.name}"],
        **reference,
        "exports": entries,
        "cpu": asdict(read_cpu()),
        "versions": software_versions(),
    }


def _times(
    task: Task, run: "TrainedRun", samples: "Samples", bundles: Sequence[Bundle], rounds: int
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Time one request to each bundle on one thread, and to the network in float32."""
    from cpt_deploy.bundle import OnnxRuntimeModel
    from cpt_deploy.export import write_float_onnx
    from cpt_deploy.validation import interleaved, median_ratio

    calls = {
        str(bundle.path): task.timed_call(OnnxRuntimeModel(bundle.onnx_path, bundle.signature), samples)
        for bundle in bundles
    }
    file = write_float_onnx(run.model)
    calls[FLOAT] = task.timed_call(OnnxRuntimeModel(file, run.model.signature), samples)
    times = interleaved(calls, rounds=rounds)
    reference = {"onnx_bytes": len(file), "milliseconds": 1e3 * statistics.median(times[FLOAT])}
    found = [
        {
            "milliseconds": 1e3 * statistics.median(times[str(bundle.path)]),
            "speedup": median_ratio(times[FLOAT], times[str(bundle.path)]),
        }
        for bundle in bundles
    ]
    return {FLOAT: reference}, found


def _weights_bytes(bundle: Bundle) -> int:
    """Return the size of all weights if each was stored in exactly its bits."""
    return sum(-(-math.prod(w["shape"]) * w["bits"] // 8) for w in bundle.quantization["weights"])


def _table(task: Task, document: Mapping[str, Any]) -> Table:
    """Return the exports as a table, with columns for what was measured."""
    metric, dataset, reference = Metric.from_dict(document["metric"]), document["dataset"], document[FLOAT]
    intervals = any(entry["interval_95"] for entry in document["exports"])
    columns = (
        "weights", "activations", metric.title, *(["95 % interval"] if intervals else []), "integers that differ",
        "model.onnx (of float32)", "weights at their bits", "latency", "speed-up over float32",
    )  # fmt: skip
    title = (
        f"{document['run']} on {dataset['samples']:,} {task.unit} of {dataset['name']} ({dataset['split']}); trained "
        f"model at max_bits {metric.text(document[f'trained_{metric.name}'])}; one request on one thread"
    )
    title += f", float32 takes {reference['milliseconds']:.3f} ms"
    rows = []
    for entry in document["exports"]:
        size = readable.size(entry["onnx_bytes"])
        differing = "not compared"
        if entry["mismatching_integers"] is not None:
            differing = f"{entry['mismatching_integers']} of {entry['compared_integers']:,}"
        rows.append(
            (
                f"{entry['weight_bits']} bits",
                f"{entry['activation_bits']} bits",
                metric.text(entry[metric.name]),
                *([" to ".join(metric.text(bound) for bound in entry["interval_95"])] if intervals else []),
                differing,
                f"{size} ({entry['onnx_bytes'] / reference['onnx_bytes']:.3f})",
                readable.size(entry["weights_bytes"]),
                f"{entry['milliseconds']:.3f} ms",
                f"{entry['speedup']:.2f}x",
            )
        )
    return Table(columns, tuple(rows), title)


def _write(folder: Path, task: Task, document: Mapping[str, Any], table: Table) -> None:
    from cpt_deploy.report import plot_sweep

    metric = Metric.from_dict(document["metric"])
    trained = document[f"trained_{metric.name}"]
    intervals = ", 95 % interval" if any(entry["interval_95"] for entry in document["exports"]) else ""
    plot_sweep(
        [_point(entry, metric, document["max_bits"]) for entry in document["exports"]],
        folder / PLOT,
        title=f"{document['run']}: one run at several bits of weights",
        size_label="weights at their bits",
        quality_label=f"{metric.axis} in onnxruntime{intervals}",
        latency_label=f"one request of {task.unit}, one thread",
        trained=None if trained is None else metric.scale * trained,
    )
    lines = ["| " + " | ".join(row) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "|" + "---|" * len(table.columns))
    (folder / TABLE).write_text(f"{table.title}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _point(entry: Entry, metric: Metric, max_bits: int) -> "SweepPoint":
    from cpt_deploy.report import SweepPoint

    weights, activations = entry["weight_bits"], entry["activation_bits"]
    value = entry[metric.name]
    # None is a value that is not finite, which JSON does not have
    quality, low, high = (
        math.nan if each is None else metric.scale * each for each in (value, *(entry["interval_95"] or (value, value)))
    )
    return SweepPoint(
        label=f"{weights}",
        series="activations at the weights' bits"
        if activations == weights != max_bits
        else f"activations at {activations} bits",
        quality=quality,
        low=low,
        high=high,
        kilobytes=entry["weights_bytes"] / 1e3,
        milliseconds=entry["milliseconds"],
    )
