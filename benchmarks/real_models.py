"""Trained ONNX files of public packages: exported, proven, and compared with float and with `quantize_static`.

The packages are installed into `build/real-models`. Each file is exported on some samples and compared on others: every
integer with onnxruntime's, each output with the float model's (which stands for the truth), processor time with
that of the float file and of `quantize_static` on the same samples, and an answer over HTTP with the session's. Results
are kept after each file; repeating the command measures those that are missing.

    CPT_DATA_DIR=… OMP_NUM_THREADS=1 python benchmarks/real_models.py [--models 320n nmp] [--again]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from measuring import RESULTS, interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from numpy.typing import NDArray
from rich.progress import Progress
from trained_files import agreement, samples
from trained_files.files import FILES, Outputs, TrainedFile
from trained_files.packages import FOLDER, fetched
from trained_files.served import is_served_equally
from trained_files.statically import static_file

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer import IntegerGraph
from cpt_deploy.integer.stored import graph_from_bundle
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs/images"
Sample = dict[str, NDArray[Any]]


def outputs_of(session: Any, held_out: Sequence[Sample]) -> Outputs:
    """Return the outputs of a model on samples, one at a time, joined."""
    found = [session.run(None, sample) for sample in held_out]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Args:
        graph: Its integer graph.
        content: Its ONNX file.
        integer_share: Share of the multiply-accumulates on integers.
        bundle: Its bundle; None if the command refused it.
        refused: Why.
    """

    graph: IntegerGraph
    content: bytes
    integer_share: float
    bundle: Path | None
    refused: str = ""


def exported(name: str, path: Path, calibration: Sequence[Sample]) -> Exported:
    """Export a file with `cpt export`; if that refuses it, quantize it with the library."""
    rows, folder = FOLDER / f"{name}.npz", FOLDER / "bundles" / name
    np.savez(rows, **{key: np.concatenate([sample[key] for sample in calibration]) for key in calibration[0]})
    shutil.rmtree(folder, ignore_errors=True)
    command = ["export", "--from", str(path), "--data", str(rows), "--out", str(folder), "--quiet"]
    done = subprocess.run([sys.executable, "-m", "cpt_cli", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        quantized = quantize_onnx(read_onnx(path), calibration)
        share = quantized.placement.integer_share
        return Exported(quantized.graph, write_onnx(quantized.graph), share, None, done.stderr.strip())
    bundle = Bundle.open(folder)
    parts = bundle.float_parts
    share = 1.0 if parts is None else parts["integer_macs"] / (parts["integer_macs"] + parts["float_macs"])
    return Exported(graph_from_bundle(bundle), bundle.onnx_path.read_bytes(), share, folder)


def static_sessions(path: Path, calibration: Sequence[Sample]) -> dict[str, Any]:
    """Return sessions of quantize_static's files at settings that suit this processor, or why there is none."""
    saturates = read_cpu().saturates is not False
    variants = {"8 bits, exact kernels" if saturates else "8 bits": False} | ({"7 bits": True} if saturates else {})
    found: dict[str, Any] = {}
    for name, reduced in variants.items():
        try:
            content, note = static_file(path, calibration, reduce_range=reduced)
        except RuntimeError as error:
            found[name] = str(error)
            continue
        if reduced:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        else:
            session = open_session(content)
        found[f"{name}, {note}" if note else name] = session
    return found


def agreements(file: TrainedFile, wanted: Outputs, got: Outputs) -> dict[str, Any]:
    """Return the agreement of outputs with the float model's."""
    pairs = list(zip(wanted, got, strict=True))
    return {
        "sqnr_db": [agreement.sqnr(*pair) for pair in pairs],
        "cosine": [agreement.cosine(*pair) for pair in pairs],
        "agreement": file.agreement(wanted, got),
    }


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Take one file through everything."""
    file = FILES[name]
    path = fetched(file.package, file.path)
    calibration = [{file.input: file.sample(2 * i)} for i in range(arguments.calibration)]
    held_out = [{file.input: file.sample(2 * i + 1)} for i in range(arguments.held_out)]
    ours = exported(name, path, calibration)
    compared = [compare_integers(ours.graph, ours.content, sample) for sample in held_out[: arguments.proven]]
    sessions = {"float": open_session(path), "ours": open_session(ours.content)}
    static = static_sessions(path, calibration)
    sessions |= {key: value for key, value in static.items() if not isinstance(value, str)}
    results = {key: outputs_of(session, held_out) for key, session in sessions.items()}
    times = interleaved(
        {key: partial(session.run, None, held_out[0]) for key, session in sessions.items()},
        rounds=arguments.rounds, seconds=arguments.seconds, clock=time.process_time,
    )  # fmt: skip
    return {
        "file": name,
        "package": file.package,
        "samples": samples.described(file.sample),
        "calibration": arguments.calibration,
        "held_out": arguments.held_out,
        "measure": file.measure,
        "outputs": [output.name for output in sessions["float"].get_outputs()],
        "integer_share": ours.integer_share,
        "differing": sum(comparison.mismatches for comparison in compared),
        "integers": sum(tensor.values for comparison in compared for tensor in comparison.tensors),
        "models": {key: agreements(file, results["float"], found) for key, found in results.items() if key != "float"},
        "failed": {key: value for key, value in static.items() if isinstance(value, str)},
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "speedup": {key: median_ratio(times["float"], values) for key, values in times.items() if key != "float"},
        "size_ratio": len(ours.content) / path.stat().st_size,
        "refused": ours.refused,
        "served_equally": is_served_equally(ours.bundle, held_out[0]) if ours.bundle else None,
        "load": os.getloadavg()[0],
    }


def worst(models: dict[str, Any], key: str) -> float:
    """Return the SQNR of a model's worst output."""
    return float(min(models[key]["sqnr_db"]))


def shown(value: float | None) -> str:
    """Return an agreement in words; None is that of two models that find nothing."""
    return "no boxes in either" if value is None else f"{value:.1%}"


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    models, times = result["models"], result["speedup"]
    static = [key for key in models if key != "ours"]
    served = {True: "equal", False: "**differs**", None: "no bundle"}[result["served_equally"]]
    return [
        f"{result['file']} ({result['package'].partition('==')[0]})",
        f"{result['samples']}, {result['calibration']} and {result['held_out']}",
        f"{result['integer_share']:.1%}",
        f"{result['differing']} of {result['integers']:,}",
        f"{worst(models, 'ours'):.1f}",
        "; ".join(f"{worst(models, key):.1f} ({key})" for key in static) or "fails",
        f"{shown(models['ours']['agreement'])} ({result['measure']})",
        "; ".join(shown(models[key]["agreement"]) for key in static) or "-",
        f"{result['milliseconds']['float']:.1f}",
        f"{times['ours']:.2f}x",
        "; ".join(f"{times[key]:.2f}x" for key in static) or "-",
        f"{result['size_ratio']:.2f}",
        served,
    ]


HEADER = [
    "file (package)", "samples for calibration and comparison", "MACs on integers", "differing integers",
    "SQNR of the worst output, dB", "same, quantize_static", "agreement with float", "same, quantize_static",
    "float ms", "speed-up", "same, quantize_static", "size / float", "answer over HTTP",
]  # fmt: skip


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per file."""
    lines = [
        "Trained files of public packages, exported on some samples and compared with the float model on others, "
        "beside `quantize_static` (QDQ, per channel, min/max) on the same samples; processor time of one row, one "
        "thread, medians of alternating rounds (`python benchmarks/real_models.py`)",
        markdown_table(HEADER, [row(result) for result in content["results"]]),
    ]
    for result in content["results"]:
        notes = [f"quantize_static, {key}: {why}" for key, why in result["failed"].items()]
        notes += [f"no bundle: {result['refused']}"] if result["refused"] else []
        lines += [f"- {result['file']}: {note}" for note in notes]
    return "\n\n".join([*lines, machine_line(content["machine"])])


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw agreement against speed-up, ours and quantize_static's joined by a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "real_models"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for number, result in enumerate(results):
        color, at = f"C{number}", (result["speedup"]["ours"], worst(result["models"], "ours"))
        for key in result["models"]:
            if key != "ours":
                other = (result["speedup"][key], worst(result["models"], key))
                axes.plot(*zip(other, at, strict=True), color=color, linewidth=0.8, alpha=0.5)
                axes.plot(*other, "x", color=color)
        axes.plot(*at, "o", color=color, label=result["file"])
    axes.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    axes.plot([], [], "o", color="gray", label="cpt-deploy")
    axes.plot([], [], "x", color="gray", label="quantize_static")
    axes.set(xlabel="speed-up over float, one thread", ylabel="SQNR of the worst output, dB")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure the files that have no results yet, and write all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--proven", type=int, default=4, help="samples of which every integer is compared")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30, help="stop timing after this time")
    parser.add_argument("--again", action="store_true", help="measure files that have results, too")
    arguments = parser.parse_args()
    name = "real_models_without_vnni" if read_cpu().saturates is not False else "real_models"
    kept = RESULTS / f"{name}.json"
    known = {entry["file"]: entry for entry in json.loads(kept.read_text())["results"]} if kept.is_file() else {}
    left = [model for model in arguments.models if arguments.again or model not in known]
    with Progress() as progress:
        for model in progress.track(left, description="trained files"):
            progress.console.print(f"measuring {model}")
            known[model] = measure(model, arguments)
            results = [known[key] for key in FILES if key in known]
            content = {"machine": machine(), "results": results}
            write_results(name, content, table(content))
            draw(results, PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
