import resource
import signal

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.errors import CheckpointError, DataError, RunInterruptedError, UsageError
from cpt_deploy.training import train
from cpt_deploy.training.reports import SilentReporter
from cpt_deploy.training.run_directory.metrics_log import read_metrics
from tests.unit.training.conftest import StepHook

DROPOUT_MODEL = """
from torch import nn

def build(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, num_classes),
    )
"""


VARIANTS = {
    "sgd": (),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.003", "optimizer.decay_norm_and_bias=false"),
    "swa": ("train.swa.enabled=true", "train.swa.start=0.5", "train.swa.lr=0.02", "train.label_smoothing=0.1"),
    "dropout": ("model={name: own_dropout:build}",),
    "sbm": ("quantization.scheme=sbm",),
    "between": ("train.checkpoint_every=null", "train.eval_every=5 steps", "train.grad_clip=1.0"),
}


@pytest.mark.by_default("sgd-11", "swa-15", "between-5")
@pytest.mark.parametrize(
    ("variant", "step"),
    [
        ("sgd", 1),
        ("sgd", 11),
        ("sgd", 13),
        ("adamw", 13),
        ("swa", 15),
        ("dropout", 4),
        ("sbm", 13),
        ("between", 5),
        ("between", 18),
    ],
)
def test_interrupted_and_resumed_run_is_the_uninterrupted_one(
    recipe, tmp_path, train_until, outcome, finished, own_module, variant, step, interrupt
):
    own_module("own_dropout", DROPOUT_MODEL)
    overrides = VARIANTS[variant]
    whole = finished(*overrides)

    with pytest.raises(RunInterruptedError) as caught:
        train_until(tmp_path / "parts", step, interrupt(), *overrides)
    train(recipe(*overrides), tmp_path / "parts", resume=True)

    assert caught.value.exit_code == 130
    assert f"step {step} of 22" in str(caught.value)
    assert outcome(tmp_path / "parts") == whole


def test_run_killed_between_checkpoints_goes_back_to_the_last_one(
    recipe, tmp_path, train_until, outcome, finished, recorder
):
    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_until(tmp_path / "parts", 17, die)
    assert read_metrics(tmp_path / "parts" / "metrics.csv")[-1]["step"] == "16"

    train(recipe(), tmp_path / "parts", resume=True, reporter=recorder)

    assert recorder.plan.first_step == 11
    assert outcome(tmp_path / "parts") == finished()


def test_run_killed_before_its_first_checkpoint_begins_again(recipe, tmp_path, train_until, outcome, finished):
    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_until(tmp_path / "parts", 5, die)

    train(recipe(), tmp_path / "parts", resume=True)

    assert outcome(tmp_path / "parts") == finished()


def test_sigterm_has_its_own_code_and_names_how_to_go_on(tmp_path, train_until, interrupt):
    with pytest.raises(RunInterruptedError) as caught:
        train_until(tmp_path / "run", 2, interrupt(signal.SIGTERM))

    assert caught.value.exit_code == 143
    assert f"--resume {tmp_path / 'run'}" in caught.value.hint
    assert (tmp_path / "run" / "curves.png").is_file()


INTERRUPTING_DATA = """
import os, signal
from pathlib import Path
import numpy as np

class Images:
    classes = ("a", "b")
    targets = [index % 2 for index in range(8)]
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 8
    def __getitem__(self, index):
        armed = Path(__file__).with_name("armed")
        if self.split == "test" and armed.exists():
            armed.unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        return np.full((6, 6), 20 * index, np.uint8), index % 2
"""


@pytest.mark.by_default("calibrated")
@pytest.mark.parametrize("calibrate", [0, 2], ids=["not calibrated", "calibrated"])
def test_signal_in_an_evaluation_does_not_lose_the_evaluation(recipe, tmp_path, outcome, own_module, calibrate):
    own_module("own_interrupting", INTERRUPTING_DATA)
    mine = recipe(
        "data={name: own_interrupting:Images, cache_mb: 0}",
        "train.batch_size=4",
        "train.eval_batch_size=4",
        f"train.calibration_batches={calibrate}",
    )
    train(mine, tmp_path / "whole")

    (tmp_path / "own" / "armed").touch()
    with pytest.raises(RunInterruptedError, match="step 2 of 4") as first:
        train(mine, tmp_path / "parts")
    with pytest.raises(RunInterruptedError, match="before the model was calibrated") as second:
        train(mine, tmp_path / "parts", resume=True, reporter=ArmAtTheEnd(tmp_path / "own" / "armed"))
    train(mine, tmp_path / "parts", resume=True)

    assert (first.value.exit_code, second.value.exit_code) == (143, 143)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_second_signal_in_the_same_evaluation_does_not_lose_it_either(recipe, tmp_path, outcome, own_module):
    own_module("own_interrupting", INTERRUPTING_DATA)
    mine = recipe(
        "data={name: own_interrupting:Images, cache_mb: 0}", "train.batch_size=4", "train.eval_batch_size=4",
        "train.steps=4", "train.eval_every=2 steps", "lr.name=plateau", "train.calibration_batches=2",
    )  # fmt: skip
    train(mine, tmp_path / "whole")

    for resume in (False, True):
        (tmp_path / "own" / "armed").touch()
        with pytest.raises(RunInterruptedError, match="step 2 of 4"):
            train(mine, tmp_path / "parts", resume=resume)
    train(mine, tmp_path / "parts", resume=True)

    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_signal_in_the_last_step_is_an_interruption(recipe, tmp_path, train_until, outcome, finished, interrupt):
    with pytest.raises(RunInterruptedError, match="before the model was calibrated") as caught:
        train_until(tmp_path / "parts", 22, interrupt())
    train(recipe(), tmp_path / "parts", resume=True)

    assert caught.value.exit_code == 130
    assert outcome(tmp_path / "parts") == finished()


@pytest.mark.parametrize("change", ["names", "fewer", "pixels"])
def test_changed_images_are_refused(recipe, tmp_path, interrupt, change):
    random = np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / place / f"{number}.png")
    mine = recipe(f"data={{name: {tmp_path / 'photos'}}}", "train.batch_size=4", "train.steps=4")
    with pytest.raises(RunInterruptedError):
        train(mine, tmp_path / "run", reporter=StepHook(2, interrupt()))
    if change == "names":
        for split in ("train", "test"):
            (tmp_path / "photos" / split / "cat").rename(tmp_path / "photos" / split / "zebra")
    elif change == "fewer":
        (tmp_path / "photos" / "train" / "cat" / "3.png").rename(tmp_path / "photos" / "test" / "cat" / "4.png")
    else:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "train" / "cat" / "3.png")

    with pytest.raises(CheckpointError, match="began with, but they have changed"):
        train(mine, tmp_path / "run", resume=True)


class ArmAtTheEnd(SilentReporter):
    def __init__(self, path):
        self.path = path

    def evaluated(self, evaluation):
        if evaluation.step == 4 and not evaluation.calibrated:
            self.path.touch()


def test_finished_run_is_left_alone(recipe, tmp_path):
    first = train(recipe(), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    again = train(recipe(), tmp_path / "run", resume=True)

    assert again == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_directory_in_use_and_changed_settings_are_refused(recipe, tmp_path):
    train(recipe("train.steps=2"), tmp_path / "run")

    with pytest.raises(UsageError, match="not empty"):
        train(recipe("train.steps=2"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"train\.steps was 2, is 3"):
        train(recipe("train.steps=3"), tmp_path / "run", resume=True)


def test_truncated_checkpoint_is_found_on_resume(recipe, tmp_path, train_until, interrupt):
    with pytest.raises(RunInterruptedError):
        train_until(tmp_path / "run", 13, interrupt())
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        train(recipe(), tmp_path / "run", resume=True)


def test_checkpoint_of_another_model_is_refused(recipe, tmp_path, train_until, interrupt):
    for name, width in (("wide", 8), ("narrow", 4)):
        with pytest.raises(RunInterruptedError):
            train_until(tmp_path / name, 3, interrupt(), f"model.args.width={width}")
    (tmp_path / "wide/checkpoints/last.safetensors").replace(tmp_path / "narrow/checkpoints/last.safetensors")

    with pytest.raises(CheckpointError, match="of this model"):
        train(recipe(), tmp_path / "narrow", resume=True)


def test_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(
    recipe, tmp_path, train_until, outcome, finished
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    try:
        with pytest.raises(DataError, match="Expected to write a checkpoint") as caught:
            train_until(tmp_path / "parts", 12, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert "last good checkpoint" in caught.value.hint
    assert not list((tmp_path / "parts" / "checkpoints").glob(".*"))
    train(recipe(), tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == finished()
