"""What one CPT run gives at several bits, against runs trained statically at 8 bits and at each of them.

For each seed a network is trained with CPT 3-8, statically at 8 bits, and statically at each width (the first and the
last layer and the residual stream at 8 bits, as in CPT). Each is settled and frozen at the bits asked for, and the
accuracy is onnxruntime's on the whole test set. Runs and results are kept in a folder: the same command goes on there.

    CPT_DATA_DIR=… python benchmarks/family.py [--model tiny --epochs 2] [--seeds 3] [--bits 8 6 5 4 3]
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, machine_line, markdown_table, write_results

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.data import ImageSet, eval_loader, load_images
from cpt_deploy.export import write_onnx
from cpt_deploy.freezing import freeze
from cpt_deploy.quantization import settle
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import TrainedRun, load_run, settling_inputs, train

UPPER = 8
Widths = tuple[int, int]


def kinds(bits: list[int]) -> dict[str, tuple[list[str], list[Widths]]]:
    """Return the runs of a seed: their precision settings, and bits of weights and activations to export them at."""
    below = [b for b in bits if b < UPPER]
    everything = [(UPPER, UPPER), *((b, a) for b in below for a in (UPPER, b))]
    runs = {
        "cpt": (["precision.schedule=cosine", f"precision.lower={min(below, default=3)}"], everything),
        f"static{UPPER}": (["precision.schedule=static"], everything),
    }
    for b in below:
        points = f"precision.points=[[0, {b}]]"
        runs[f"static{b}"] = (["precision.schedule=piecewise", f"precision.lower={b}", points], [(b, b)])
    return runs


def trained_run(folder: Path, settings: list[str]) -> TrainedRun:
    """Return a run, trained now unless it is there; one that was interrupted goes on."""
    recipe = load_recipe("fashion-mnist-resnet20", settings)
    print(f"training {folder.name}, unless it is there", file=sys.stderr, flush=True)
    train(recipe, folder, resume=(folder / "recipe.yaml").is_file())  # refuses a run of other settings
    return load_run(folder)


def accuracy_at(run: TrainedRun, widths: Widths, train_images: ImageSet, test_images: ImageSet) -> float:
    """Return the accuracy in onnxruntime on the whole test set of a run frozen at some bits."""
    weights, activations = widths
    settle(
        run.model,
        settling_inputs(run.recipe, run.preprocessing, train_images),
        weight_bits=weights,
        activation_bits=activations,
    )
    graph = freeze(run.model, weight_bits=weights, activation_bits=activations)
    served = OnnxRuntimeModel(write_onnx(graph))
    correct = 0
    for inputs, labels in eval_loader(test_images, run.preprocessing, 250):
        correct += int((served.run(inputs.numpy()).argmax(axis=1) == labels.numpy()).sum())
    return correct / len(test_images)


def measure(folder: Path, settings: list[str], widths: list[Widths], images: tuple[ImageSet, ImageSet]) -> Any:
    """Train a run and measure it at all widths; what `exports.json` in its folder has already is not done again."""
    run, path = trained_run(folder, settings), folder / "exports.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    measured = known.get("accuracy", {}) if known.get("weights_sha256") == run.weights_sha256 else {}
    for pair in widths:
        key = f"{pair[0]}/{pair[1]}"
        if key not in measured:
            measured[key] = accuracy_at(run, pair, *images)
            print(f"{folder.name} at {key} bits: {measured[key]:.4f}", file=sys.stderr, flush=True)
            path.write_text(json.dumps({"weights_sha256": run.weights_sha256, "accuracy": measured}, indent=1) + "\n")
    return {"accuracy": measured, "gbitops": run.report.cost["gbitops"], "seconds": run.report.seconds["training"]}


def cell(runs: list[dict[str, Any]], widths: Widths) -> str:
    """Return mean and standard deviation over the seeds, in percent."""
    values = [100 * run["accuracy"][f"{widths[0]}/{widths[1]}"] for run in runs]
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def table(results: dict[str, list[dict[str, Any]]], bits: list[int]) -> str:
    """Return a row for each width: the CPT run and the statically trained ones."""
    header = [
        "weights", "CPT run, activations 8 bits", "CPT run, activations as weights", "static 8, activations 8 bits",
        "static 8, activations as weights", "static at the width, activations as weights",
    ]  # fmt: skip
    rows = []
    for b in bits:
        static = f"static{UPPER}"
        cells = [cell(results[name], (b, a)) for name in ("cpt", static) for a in (UPPER, b)]
        rows.append([f"{b} bits", *cells, cell(results[f"static{b}"], (b, b))])
    return markdown_table(header, rows)


def main() -> None:
    """Train and measure all runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=4)
    length.add_argument("--steps", type=int, help="instead of epochs, for a trial")
    parser.add_argument("--cycles", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4, 3], choices=range(2, 9), metavar="BITS")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-family"))
    arguments = parser.parse_args()
    length_setting = f"train.steps={arguments.steps}" if arguments.steps else f"train.epochs={arguments.epochs}"
    common = [f"model.name={arguments.model}", length_setting, f"precision.cycles={arguments.cycles}"]
    if arguments.steps:
        common += ["train.epochs=null", "train.eval_every=null", "lr.warmup_steps=0"]
    images = (
        load_images("fashion-mnist", split="train", root=None),
        load_images("fashion-mnist", split="test", root=None),
    )
    results: dict[str, list[dict[str, Any]]] = {}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name, (precision, widths) in kinds(arguments.bits).items():
            settings = [*common, f"seed={seed}", *precision]
            folder = arguments.folder / f"{arguments.model}-{length_setting.partition('.')[2]}-{name}-seed{seed}"
            results.setdefault(name, []).append(measure(folder, settings, widths, images))
    info = machine()
    command = f"python benchmarks/family.py --model {arguments.model} --{length_setting[6:].replace('=', ' ')} "
    command += f"--cycles {arguments.cycles} --seeds {arguments.seeds} --bits {' '.join(map(str, arguments.bits))}"
    least = min((b for b in arguments.bits if b < UPPER), default=3)
    cost = statistics.mean(run["gbitops"] for run in results["cpt"]) / statistics.mean(
        run["gbitops"] for run in results[f"static{UPPER}"]
    )
    title = (
        f"{arguments.model} on Fashion-MNIST, {length_setting.partition('.')[2].replace('=', ' ')}, "
        f"CPT {least}-{UPPER} bits in {arguments.cycles} cycles: accuracy (%) in onnxruntime on all "
        f"{len(images[1]):,} test images, mean ± standard deviation of {arguments.seeds} seeds (`{command}`). "
        f"The CPT run takes {cost:.2f} of the BitOPs of static {UPPER} bits.\n\n"
    )
    write_results(
        "family",
        {"command": command, "machine": info, "settings": vars(arguments) | {"folder": None}, "runs": results},
        title + table(results, arguments.bits) + f"\n\n{machine_line(info)}",
    )


if __name__ == "__main__":
    main()
