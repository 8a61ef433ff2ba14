"""The runs shared by the benchmarks of learning: their settings, fixed beforehand, and the folder that keeps them.

All runs of a data set have the same network and length, and differ only in precision.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import train

MODEL, EPOCHS, CYCLES, MIN_BITS, MAX_BITS = "resnet8", 2, 8, 3, 8
TEXT_SIZE, TEXT_STEPS, TEXT_MIN_BITS = 128, 500, 5

Metric = Literal["accuracy", "perplexity"]


def _static(bits: int) -> list[str]:
    if bits == MAX_BITS:
        return ["precision.schedule=static"]
    # Static at the bit-width, with first and last layer and the residual stream at 8 bits, as in the CPT runs.
    return ["precision.schedule=piecewise", f"precision.min_bits={bits}", f"precision.points=[[0, {bits}]]"]


def _cyclic(schedule: str, min_bits: int = MIN_BITS) -> list[str]:
    return [f"precision.schedule={schedule}", f"precision.min_bits={min_bits}"]


#: With 32 bits, quantizers do not change float32 values.
_FLOAT32 = ["precision={schedule: static, min_bits: 32, max_bits: 32, grad_min_bits: 32, grad_max_bits: 32}"]

#: Precision of each kind of run on images.
KINDS = {
    "float32": _FLOAT32,
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

#: The same on text, where the bits of the whole network cycle, as in the paper, and static runs have the same bits in
#: all layers.
TEXT_KINDS = {
    "float32": [*_FLOAT32, "precision.ends=scheduled"],
    **{
        f"static{bits}": ["precision.schedule=static", f"precision.min_bits={bits}", f"precision.max_bits={bits}"]
        for bits in (8, 6, 4)
    },
    "cpt": _cyclic("cosine", TEXT_MIN_BITS),
    "cpt-large-saving": _cyclic("rex", TEXT_MIN_BITS),
    "cpt-small-saving": _cyclic("exponential", TEXT_MIN_BITS),
}


@dataclass(frozen=True)
class Task:
    """Settings shared by the runs on one data set.

    Args:
        preset: Recipe on which they are based.
        settings: Changes common to all of them.
        length: Setting of their length; a trial has its own.
        kinds: Precision of each kind of run.
        metric: Metric on the test set.
        title: Network, length and bits, as text.
    """

    preset: str
    settings: tuple[str, ...]
    length: tuple[str, ...]
    kinds: Mapping[str, list[str]]
    metric: Metric
    title: str


def _images(*settings: str) -> Task:
    return Task(
        "fashion-mnist-resnet20",
        (f"model.name={MODEL}", *settings),
        (f"train.epochs={EPOCHS}",),
        KINDS,
        "accuracy",
        f"{MODEL}, {EPOCHS} epochs, CPT {MIN_BITS}-{MAX_BITS} bits in {CYCLES} cycles",
    )


TASKS = {
    "fashion-mnist": _images("data.name=fashion-mnist"),
    "cifar10": _images(
        "data.name=cifar10-jpeg",
        "data.augment=[{name: random_crop, padding: 4}, {name: hflip}]",
    ),
    "ptb": Task(
        "ptb-lstm",
        (
            f"model.args.embedding={TEXT_SIZE}",
            f"model.args.hidden={TEXT_SIZE}",
            "model.args.dropout=0",  # a small network cannot overfit in half an epoch
            "train.eval_batch_size=40",
        ),
        ("train.epochs=null", f"train.steps={TEXT_STEPS}"),
        TEXT_KINDS,
        "perplexity",
        f"two-layer LSTM of {TEXT_SIZE}, {TEXT_STEPS} steps of 700 tokens, CPT "
        f"{TEXT_MIN_BITS}-{MAX_BITS}/{MAX_BITS} bits "
        f"in {CYCLES} cycles",
    ),
}


def run_settings(dataset: str, kind: str, seed: int, steps: int | None = None) -> list[str]:
    """Return a run's changes of its preset; `steps` shortens it for a trial."""
    task = TASKS[dataset]
    length = list(task.length)
    if steps is not None:
        length = ["train.epochs=null", f"train.steps={steps}", "lr.warmup_steps=0", "train.calibration_batches=2"]
    kept = ["train.eval_every=null", "train.checkpoint_every=100 steps"]
    named = [f"precision.cycles={CYCLES}", f"seed={seed}", f"name={dataset}-{kind}"]
    return [*task.settings, *named, *length, *kept, *task.kinds[kind]]


def trained_run(folder: Path, dataset: str, kind: str, seed: int, steps: int | None = None) -> Path:
    """Return the directory of a run in the folder; train it if it is missing, and resume it if it was interrupted.

    The processor time of the training is in `cpu_seconds.json` in the directory.
    """
    directory = folder / f"{dataset}-{kind}-seed{seed}"
    recipe = load_recipe(TASKS[dataset].preset, run_settings(dataset, kind, seed, steps))
    resumed = (directory / "recipe.yaml").is_file()
    if not (directory / "report.json").is_file():
        print(f"{time.strftime('%H:%M:%S')} training {directory.name}", file=sys.stderr, flush=True)
    begin = time.process_time()
    train(recipe, directory, resume=resumed)  # refuses a directory with other settings
    if not resumed:
        seconds: dict[str, Any] = {"cpu_seconds": time.process_time() - begin}
        (directory / "cpu_seconds.json").write_text(json.dumps(seconds) + "\n")
    return directory


def cpu_seconds(directory: Path) -> float | None:
    """Return the processor time of a run, None if it was trained in several parts."""
    path = directory / "cpu_seconds.json"
    return json.loads(path.read_text())["cpu_seconds"] if path.is_file() else None
