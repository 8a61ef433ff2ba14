"""Accuracy of one CPT run at several bits, compared with runs trained statically at 8 bits and at each of these bits.

For each seed a network is trained with CPT 3-8, statically at 8 bits, and statically at each bit-width (the first and
the last layer and the residual stream at 8 bits, as in CPT). Each is calibrated and frozen at the requested bits, and
the accuracy is onnxruntime's on the whole test set. The settings are in `training_grid.py`; runs and results are kept
in the folder of `learning.py`, which has most of them: repeating the command resumes there.

    CPT_DATA_DIR=… OMP_NUM_THREADS=1 python benchmarks/family.py [--seeds 3]
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, machine_line, markdown_table, measures_all, write_results
from training_grid import CYCLES, EPOCHS, MAX_BITS, MIN_BITS, MODEL, trained_run

from cpt_deploy.bundle import ImageProcessor, OnnxRuntimeModel
from cpt_deploy.data import ImageSet, eval_loader, load_images
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.quantization import calibrate
from cpt_deploy.training import TrainedRun, load_run
from cpt_deploy.training.task import load_task

DATASET = "fashion-mnist"
BitAllocation = tuple[int, int]


#: Bits of weights and activations at which the runs are exported; below 8 bits also with activations of 8.
WIDTHS = (8, 6, 5, 4, 3)
BELOW = tuple(bits for bits in WIDTHS if bits < MAX_BITS)


def kinds() -> dict[str, list[BitAllocation]]:
    """Return the runs of a seed, with the bits of weights and activations at which to export each."""
    everything = [(MAX_BITS, MAX_BITS), *((bits, activations) for bits in BELOW for activations in (MAX_BITS, bits))]
    return {"cpt": everything, f"static{MAX_BITS}": everything, **{f"static{bits}": [(bits, bits)] for bits in BELOW}}


def accuracy_at(run: TrainedRun, allocation: BitAllocation, test_images: ImageSet) -> float:
    """Return the accuracy in onnxruntime on the whole test set of a run frozen at some bits."""
    weights, activations = allocation
    calibrate(
        run.model,
        load_task(run.recipe, torch.device("cpu")).calibration_inputs(),
        weight_bits=weights,
        activation_bits=activations,
    )
    graph = freeze(run.model, weight_bits=weights, activation_bits=activations)
    served = OnnxRuntimeModel(write_onnx(graph))
    correct = 0
    for inputs, labels in eval_loader(test_images, run.expect_processor(ImageProcessor).preprocessing, 250):
        correct += int((served.run({"image": inputs.numpy()})["logits"].argmax(axis=1) == labels.numpy()).sum())
    return correct / len(test_images)


def measure(run: TrainedRun, folder: Path, allocation: list[BitAllocation], images: ImageSet) -> Any:
    """Measure a run at all bits; results in `exports.json` in its folder are kept."""
    path = folder / "exports.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    measured = known.get("accuracy", {}) if known.get("weights_sha256") == run.weights_sha256 else {}
    for pair in allocation:
        key = f"{pair[0]}/{pair[1]}"
        if key not in measured:
            measured[key] = accuracy_at(run, pair, images)
            print(f"{folder.name} at {key} bits: {measured[key]:.4f}", file=sys.stderr, flush=True)
            path.write_text(json.dumps({"weights_sha256": run.weights_sha256, "accuracy": measured}, indent=1) + "\n")
    return {"accuracy": measured, "gbitops": run.report.cost["gbitops"], "seconds": run.report.seconds["training"]}


def cell(runs: list[dict[str, Any]], allocation: BitAllocation) -> str:
    """Return mean and standard deviation over the seeds, in percent."""
    values = [100 * run["accuracy"][f"{allocation[0]}/{allocation[1]}"] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, a row per bit-width: the CPT run and the statically trained ones."""
    results = content["runs"]
    seeds = len(results["cpt"])
    header = [
        "weights", "CPT run, activations 8 bits", "CPT run, activations as weights", "static 8, activations 8 bits",
        "static 8, activations as weights", "static at the width, activations as weights",
    ]  # fmt: skip
    rows = []
    for bits in WIDTHS:
        cells = [cell(results[name], (bits, a)) for name in ("cpt", f"static{MAX_BITS}") for a in (MAX_BITS, bits)]
        rows.append([f"{bits} bits", *cells, cell(results[f"static{bits}"], (bits, bits))])
    costs = {kind: statistics.mean(run["gbitops"] for run in results[kind]) for kind in ("cpt", f"static{MAX_BITS}")}
    title = (
        f"{content['model']} on Fashion-MNIST, {content['epochs']} epochs, CPT {MIN_BITS}-{MAX_BITS} bits in "
        f"{content['cycles']} cycles: accuracy (%) in onnxruntime on all 10,000 test images, mean ± standard deviation "
        f"of {seeds} seeds (`OMP_NUM_THREADS=1 python benchmarks/family.py --seeds {seeds}`). The CPT run takes "
        f"{costs['cpt'] / costs[f'static{MAX_BITS}']:.2f} of the BitOPs of static {MAX_BITS} bits."
    )
    return f"{title}\n\n{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"


def main() -> None:
    """Train and measure all runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="shorter runs, for a trial")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-learning"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images(DATASET, split="test", root=None)
    results: dict[str, list[dict[str, Any]]] = {}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for kind, allocation in kinds().items():
            folder = trained_run(arguments.folder, DATASET, kind, seed, arguments.steps)
            results.setdefault(kind, []).append(measure(load_run(folder), folder, allocation, images))
    content = {"machine": machine(), "model": MODEL, "epochs": EPOCHS, "cycles": CYCLES, "runs": results}
    write_results("family", content, table(content), whole=measures_all(parser, arguments, "seeds", "steps"))


if __name__ == "__main__":
    main()
