"""A family of exports from one run: each exported, validated and timed, side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out
from cpt_cli.widths import bits_trained_at, folder_name, given_widths
from cpt_cli.workflow import TRAINED_DIGEST, ExportOptions, export_run, measure_bundle
from cpt_deploy.errors import BundleError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.training import TrainedRun

FOLDER = "sweep"
REPORT, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.png"
USUAL_BITS = (8, 6, 5, 4, 3)
FLOAT = "float32"


@dataclass(frozen=True)
class SweepEntry:
    """What was measured of one export.

    Args:
        weight_bits: Bits of the cycling weights.
        activation_bits: Bits of the cycling activations.
        bundle: Its directory.
        reused: Whether an earlier sweep had exported and validated it.
        accuracy: Accuracy in onnxruntime, 0..1.
        interval_95: Its interval.
        trained_accuracy: Accuracy of the trained model at its upper bound, on the same images.
        mismatching_integers: Integers that differ between the executor and onnxruntime; null if not compared.
        compared_integers: Integers that were compared.
        onnx_bytes: Size of model.onnx.
        weights_bytes: Size of all weights if each took no more than its bits.
        milliseconds: Latency of one image on one thread.
        speedup: The float32 export's latency divided by it.
    """

    weight_bits: int
    activation_bits: int
    bundle: Path
    reused: bool
    accuracy: float
    interval_95: tuple[float, float]
    trained_accuracy: float
    mismatching_integers: int | None
    compared_integers: int
    onnx_bytes: int
    weights_bytes: int
    milliseconds: float
    speedup: float


def sweep_run(
    run_dir: Path,
    *,
    bits: Sequence[int] | None,
    activation_bits: Sequence[int | None] | None,
    data_dir: Path | None,
    limit: int | None,
    rounds: int,
    force: bool,
) -> dict[str, Any]:
    """Export, validate and time a run at several bits; write table, figures and plot into `RUN/sweep`.

    Args:
        run_dir: The run.
        bits: Bits of the weights; those of 8, 6, 5, 4 and 3 that the run trained at if None.
        activation_bits: Bits of the cycling activations to combine them with, where None stands for those of the
            weights; the run's upper bound if None.
        data_dir: Folder that holds the data set; the recipe's if None.
        limit: How many test images; all if None.
        rounds: Timed calls of each model.
        force: Whether to export at bits that the run never trained at.

    Returns:
        What sweep.json holds.

    Raises:
        UsageError: If the run never trained at some of the bits and `force` is not set; nothing is written then.
        CptError: As `export_run` and `measure_bundle` do.
    """
    from cpt_deploy.training import load_run

    run = load_run(run_dir)
    chosen = bits or [b for b in USUAL_BITS if b in bits_trained_at(run)] or [run.recipe.precision.upper]
    pairs = list(dict.fromkeys((b, a or b) for a in activation_bits or [run.recipe.precision.upper] for b in chosen))
    for pair in pairs:
        given_widths(run, *pair, force=force)
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    bundles: list[tuple[Bundle, bool]] = []
    with out.bar("sweeping", len(pairs)) as bar:
        for done, (weights, activations) in enumerate(pairs):
            bar.advance(done, detail=f"weights {weights} bits, activations {activations}")
            bundles.append(_member(run, folder, weights, activations, data_dir, limit, force=force))
        bar.advance(len(pairs))
    document = _measure(run, pairs, bundles, rounds)
    _write(folder, run, document)
    return document


def _member(
    run: "TrainedRun",
    folder: Path,
    weights: int,
    activations: int,
    data_dir: Path | None,
    limit: int | None,
    *,
    force: bool,
) -> tuple["Bundle", bool]:
    """Return a validated bundle, and whether it was there already."""
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.validation import software_versions

    path = folder / folder_name(f"{weights}bit", activations, run.recipe.precision.upper)
    images = int(run.report.data["test_images"])
    try:
        bundle = Bundle.open(path)
    except BundleError:
        bundle = None
    if bundle is not None and bundle.validation is not None:
        facts, validation = bundle.facts, bundle.validation
        same = (
            facts.get(TRAINED_DIGEST) == run.weights_sha256
            and (facts["weight_bits"], facts["activation_bits"]) == (weights, activations)
            and validation["model_sha256"] == bundle.sha256
            and validation["dataset"]["samples"] == min(limit or images, images)
            and validation["versions"] == software_versions()
        )
        if same:
            out.note(f"{formats.path(path)} is exported and validated already")
            return bundle, True
    options = ExportOptions(bits=weights, activation_bits=activations, force=force)
    bundle = export_run(run.path, options, destination=path, data_dir=data_dir)
    root = data_dir or (Path(run.recipe.data.root) if run.recipe.data.root else None)
    measure_bundle(
        bundle,
        run.recipe.data.name,
        root,
        run_dir=run.path,
        limit=limit,
        max_drop=100.0,  # a sweep shows what is lost; it is no gate
        require_exact=False,
    )
    return Bundle.open(path), False


def _measure(
    run: "TrainedRun", pairs: Sequence[tuple[int, int]], bundles: Sequence[tuple["Bundle", bool]], rounds: int
) -> dict[str, Any]:
    from cpt_deploy.export import write_float_onnx
    from cpt_deploy.validation import compare_latency, read_cpu, software_versions

    out.note(f"timing {len(bundles)} exports and float32 in turn, {rounds} rounds")
    float_file = write_float_onnx(run.model)
    files: dict[str, Path | bytes] = {FLOAT: float_file}
    latencies = compare_latency(files | {str(b.path): b.onnx_path for b, _ in bundles}, rounds=rounds)
    entries = []
    for (weights, activations), (bundle, reused) in zip(pairs, bundles, strict=True):
        assert bundle.validation is not None
        runtimes = {runtime["name"]: runtime for runtime in bundle.validation["runtimes"]}
        integers = bundle.validation["integers"] or {"mismatching": None, "compared": 0}
        entries.append(
            SweepEntry(
                weight_bits=weights,
                activation_bits=activations,
                bundle=bundle.path,
                reused=reused,
                accuracy=runtimes["onnxruntime"]["accuracy"],
                interval_95=tuple(runtimes["onnxruntime"]["interval_95"]),
                trained_accuracy=runtimes["trained"]["accuracy"],
                mismatching_integers=integers["mismatching"],
                compared_integers=integers["compared"],
                onnx_bytes=bundle.onnx_path.stat().st_size,
                weights_bytes=_weights_bytes(bundle),
                milliseconds=latencies[str(bundle.path)].milliseconds,
                speedup=latencies[str(bundle.path)].speedup,
            )
        )
    dataset = next(b.validation["dataset"] for b, _ in bundles if b.validation is not None)
    return {
        "run": run.recipe.name,
        TRAINED_DIGEST: run.weights_sha256,
        "dataset": dataset,
        "float32": {"onnx_bytes": len(float_file), "milliseconds": latencies[FLOAT].milliseconds},
        "exports": [asdict(entry) | {"bundle": entry.bundle.name} for entry in entries],
        "cpu": asdict(read_cpu()),
        "versions": software_versions(),
    }


def _weights_bytes(bundle: "Bundle") -> int:
    return sum(-(-math.prod(w["shape"]) * w["bits"] // 8) for w in bundle.quantization["weights"])


COLUMNS = ("weights", "activations", "accuracy", "95 % interval", "integers that differ", "model.onnx (of float32)",
           "weights at their bits", "latency", "speed-up over float32")  # fmt: skip


def table_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the exports as rows of `COLUMNS`."""
    whole = document["float32"]["onnx_bytes"]
    return [
        (
            f"{entry['weight_bits']} bits",
            f"{entry['activation_bits']} bits",
            formats.share(entry["accuracy"]),
            " to ".join(formats.share(bound) for bound in entry["interval_95"]),
            f"{entry['mismatching_integers']} of {entry['compared_integers']:,}"
            if entry["mismatching_integers"] is not None
            else "not compared",
            f"{formats.size(entry['onnx_bytes'])} ({entry['onnx_bytes'] / whole:.3f})",
            formats.size(entry["weights_bytes"]),
            f"{entry['milliseconds']:.3f} ms",
            f"{entry['speedup']:.2f}x",
        )
        for entry in document["exports"]
    ]


def summary(document: dict[str, Any]) -> str:
    """Return what the table is of, as one line."""
    dataset, trained = document["dataset"], document["exports"][0]["trained_accuracy"]
    return (
        f"{document['run']} on {dataset['samples']:,} images of {dataset['name']} ({dataset['split']}); trained model "
        f"at its upper bound {formats.share(trained)}; one image on one thread, float32 takes "
        f"{document['float32']['milliseconds']:.3f} ms"
    )


def _write(folder: Path, run: "TrainedRun", document: dict[str, Any]) -> None:
    from cpt_deploy.report import FamilyMember, plot_family

    members = [
        FamilyMember(
            label=f"{entry['weight_bits']}",
            series="activations at the weights' bits"
            if entry["activation_bits"] == entry["weight_bits"] != run.recipe.precision.upper
            else f"activations at {entry['activation_bits']} bits",
            accuracy=entry["accuracy"],
            low=entry["interval_95"][0],
            high=entry["interval_95"][1],
            kilobytes=entry["weights_bytes"] / 1e3,
            milliseconds=entry["milliseconds"],
        )
        for entry in document["exports"]
    ]
    plot_family(
        members,
        folder / PLOT,
        title=f"{document['run']}: one run at several bits of weights",
        size_label="weights at their bits",
        trained=document["exports"][0]["trained_accuracy"],
    )
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(document)]
    (folder / TABLE).write_text(f"{summary(document)}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
