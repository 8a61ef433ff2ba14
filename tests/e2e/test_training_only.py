"""A run with the quantizers of the CPT paper's code: it trains and resumes as any other, and cannot be exported."""

import shutil

import pytest

from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import RunReport

SETTINGS = ("quantization.scheme=sbm", "train.epochs=null", "train.steps=30", "precision.cycles=2")
SETTINGS += ("train.eval_every=null", "train.checkpoint_every=10 steps", "train.calibration_batches=5")


@pytest.fixture(scope="module")
def run(cpt, workspace):
    """A short run, and what its training printed."""
    done = cpt("train", "digits-quickstart", *SETTINGS, "--out", "runs/sbm")
    return workspace / "runs" / "sbm", done


def test_plan_and_end_say_that_it_only_trains(run):
    directory, done = run
    assert (
        "float, for training only: the quantizers of scheme 'sbm' have real-valued zero points"
        in done.stderr + done.stdout
    )
    assert "this run cannot be exported" in done.stderr
    assert "cpt export" not in done.stderr + done.stdout
    report = RunReport.read(directory / "report.json")
    assert report.model["layers"] == {"scheduled": 6}
    assert report.model["conversion"]["path"] == "training only"
    assert report.figure > 0.2
    assert load_recipe(directory / "recipe.yaml").quantization.scheme == "sbm"


def test_its_bitops_count_the_classifier_in_float(run):
    report = RunReport.read(run[0] / "report.json")
    shares = report.bits["shares"].items()
    per_mac = sum(share * (int(bits) ** 2 + 2 * int(bits) * 8) for bits, share in shares)
    classifier = 32 * 10 * (32**2 + 2 * 32 * 32)  # 32 features, 10 classes
    bitops = 30 * 64 * (report.model["macs"] * per_mac + classifier)  # steps of 64 images
    assert report.cost["gbitops"] == pytest.approx(bitops / 1e9)


def test_a_run_that_was_stopped_before_its_end_is_finished(cpt, run, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(run[0], stopped)
    for name in ("report.json", "model.safetensors"):
        (stopped / name).unlink()
    cpt("train", "--resume", stopped, "--quiet")
    assert (stopped / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words", [("export",), ("export", "--checkpoint", "best"), ("sweep",), ("validate",), ("serve",)]
)
def test_what_needs_an_integer_form_refuses_it_in_one_line(cpt, run, words):
    command, *options = words
    before = sorted(run[0].iterdir())
    refused = cpt(command, run[0], *options, code=2)
    assert "quantization.scheme=sbm, whose real-valued zero points have no integer form" in refused.stderr
    assert "hint: train with quantization.scheme=integers" in refused.stderr
    assert sorted(run[0].iterdir()) == before


def test_a_run_that_can_be_exported_begins_from_its_weights(cpt, run, workspace):
    cpt("train", "digits-quickstart", "model.weights=runs/sbm", "--smoke", "--out", "runs/onward", "--quiet")
    cpt("export", "runs/onward", "--quiet")
    assert list((workspace / "runs" / "onward").glob("bundle-*"))
