"""The runs that benchmarks of learning share: their settings, fixed here beforehand, and a folder that keeps them.

Two data sets, one network and one length for all of them, so that runs of one data set differ in their precision alone.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import TrainedRun, load_run, train

MODEL, EPOCHS, CYCLES, LOWER, UPPER = "resnet8", 2, 8, 3, 8

#: Settings of each data set on top of the preset: the folder of images and the padding of the random crop.
DATASETS = {
    "fashion-mnist": ["data.name=fashion-mnist"],
    "cifar10": [
        "data.name=cifar10-jpeg",
        "data.augment=[{name: random_crop, padding: 4}, {name: hflip}]",
    ],
}


def _static(bits: int) -> list[str]:
    if bits == UPPER:
        return ["precision.schedule=static"]
    # Static at the width, but the ends and the residual stream hold 8 bits, as they do in the CPT runs.
    return ["precision.schedule=piecewise", f"precision.lower={bits}", f"precision.points=[[0, {bits}]]"]


def _cyclic(schedule: str) -> list[str]:
    return [f"precision.schedule={schedule}", f"precision.lower={LOWER}"]


#: Precision of each kind of run.
KINDS = {
    # Quantizers of 32 bits round to what float32 holds.
    "float32": ["precision={schedule: static, lower: 32, upper: 32, grad_lower: 32, grad_upper: 32}"],
    "static8": _static(8),
    "static6": _static(6),
    "static5": _static(5),
    "static4": _static(4),
    "static3": _static(3),
    "cpt": _cyclic("cosine"),
    "cpt-exact": [*_cyclic("cosine"), "train.compute=float32"],
    "cpt-large-saving": _cyclic("rex"),
    "cpt-small-saving": _cyclic("exponential"),
}


def run_settings(dataset: str, kind: str, seed: int, steps: int | None = None) -> list[str]:
    """Return what a run changes of the preset; `steps` shortens it for a trial."""
    length = [f"train.epochs={EPOCHS}"]
    if steps is not None:
        length = ["train.epochs=null", f"train.steps={steps}", "lr.warmup_steps=0", "train.settle_batches=2"]
    kept = ["train.eval_every=null", "train.checkpoint_every=100 steps"]
    model = [f"model.name={MODEL}", f"precision.cycles={CYCLES}", f"seed={seed}", f"name={dataset}-{kind}"]
    return [*model, *length, *kept, *DATASETS[dataset], *KINDS[kind]]


def trained_run(folder: Path, dataset: str, kind: str, seed: int, steps: int | None = None) -> TrainedRun:
    """Return a run of the folder, trained now unless it is there; one that was interrupted goes on.

    How much processor time the training took stands beside it, in `cpu_seconds.json`.
    """
    directory = folder / f"{dataset}-{kind}-seed{seed}"
    recipe = load_recipe("fashion-mnist-resnet20", run_settings(dataset, kind, seed, steps))
    resumed = (directory / "recipe.yaml").is_file()
    if not (directory / "report.json").is_file():
        print(f"{time.strftime('%H:%M:%S')} training {directory.name}", file=sys.stderr, flush=True)
    begin = time.process_time()
    train(recipe, directory, resume=resumed)  # refuses a directory of other settings
    if not resumed:
        seconds: dict[str, Any] = {"cpu_seconds": time.process_time() - begin}
        (directory / "cpu_seconds.json").write_text(json.dumps(seconds) + "\n")
    return load_run(directory)


def cpu_seconds(directory: Path) -> float | None:
    """Return the processor time of a run, None if it was trained in several parts."""
    path = directory / "cpu_seconds.json"
    return json.loads(path.read_text())["cpu_seconds"] if path.is_file() else None
