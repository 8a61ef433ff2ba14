"""The precision range test: what counts as progress, and what it finds on digits."""

import json
import math
import random

import pytest
import torch
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.errors import TrainingDivergedError, UsageError
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.report import plot_range_test
from cpt_deploy.training import range_test
from cpt_deploy.training.experiments.range_test import BitsProgress


def progress(before: float, after: float, *, steps: int = 100, batch_size: int = 128) -> BitsProgress:
    quarter = steps // 4
    middle = steps - 2 * quarter
    return BitsProgress(3, (before,) * quarter + (0.9,) * middle + (after,) * quarter, (1.0,) * steps, batch_size)


def test_a_rise_is_that_of_the_averages_at_both_ends():
    entry = progress(0.2, 0.5)

    assert (entry.before, entry.after, entry.rise) == (0.2, pytest.approx(0.5), pytest.approx(0.3))
    assert entry.standard_error == pytest.approx(math.sqrt((0.2 * 0.8 + 0.5 * 0.5) / (25 * 128)))


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(0.1, 0.1, False), (0.1, 0.3, True), (0.3, 0.1, False), (0.1, 0.115, False)]
)
def test_progress_has_to_exceed_the_threshold_and_chance(before, after, expected):
    assert progress(before, after).exceeds(0.01) is expected


def test_chance_alone_seldom_counts_as_progress():
    generator = random.Random(0)

    def step():
        return sum(generator.random() < 0.1 for _ in range(64)) / 64

    found = [BitsProgress(2, tuple(step() for _ in range(40)), (1.0,) * 40, 64).exceeds(0.0) for _ in range(200)]
    assert sum(found) < 200 * 0.05


@pytest.mark.slow
def test_digits_train_from_few_bits_on(recipe):
    outcome = range_test(recipe("model.args.width=16"), steps=30, to_max_bits=True)

    assert [entry.bits for entry in outcome.progress] == [2, 3, 4, 5, 6, 7, 8]
    assert outcome.min_bits == next(entry.bits for entry in outcome.progress if entry.exceeds(0.01))
    assert outcome.min_bits <= 4
    assert outcome.progress[-1].after > 0.6


def test_it_stops_at_the_first_precision_that_trains_and_repeats_itself(recipe):
    first, second = (range_test(recipe("model.args.width=16"), steps=30) for _ in range(2))

    assert first == second
    assert first.progress[-1].bits == first.min_bits


def test_a_network_that_does_not_learn_has_no_lower_bound(recipe):
    told = []
    outcome = range_test(
        recipe("optimizer.lr=1e-9", "precision.max_bits=4"), steps=8, on_step=lambda *a: told.append(a)
    )

    assert outcome.min_bits is None
    assert [entry.bits for entry in outcome.progress] == [2, 3, 4]
    assert [done for done, _, _ in told] == list(range(1, 25))
    assert {total for _, total, _ in told} == {24}


def test_schedules_of_the_recipe_do_not_matter(recipe):
    small = ("precision.max_bits=3", "train.epochs=null", "train.steps=20")
    static, others = (
        range_test(recipe(*small, *more), steps=4, to_max_bits=True)
        for more in (
            ("precision.schedule=static",),
            ("precision.cycles=15", "precision.delay=0.5", "precision.grad_schedule=linear"),
        )
    )
    assert static == others


def test_too_few_steps_are_refused(recipe):
    with pytest.raises(UsageError, match="at least 4 steps"):
        range_test(recipe(), steps=3)


def test_one_process_carries_it_out(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process, but got 2"):
        range_test(recipe(), steps=4)


WIDE = ["digits-quickstart", "model.args.width=16", "train.device=cpu"]


def test_the_command_writes_its_evidence(capsys, tmp_path):
    assert main(["range-test", *WIDE, "--steps", "30", "--out", str(tmp_path / "range"), "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "range" / "range_test.json").read_text())
    assert printed["precisions"] == written["precisions"]
    assert printed["min_bits"] == written["min_bits"] == printed["precisions"][-1]["bits"]
    with Image.open(tmp_path / "range" / "range_test.png") as picture:
        assert picture.width > 800


def test_a_run_takes_the_bound_that_was_found(capsys, tmp_path):
    arguments = [*WIDE, "train.epochs=1", "train.eval_every=null", "--bits", "auto", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments, "--json"]) == 0

    found = json.loads((tmp_path / "run-range-test" / "range_test.json").read_text())["min_bits"]
    assert json.loads(capsys.readouterr().out)["report"]["bits"]["min_bits"] == found


@pytest.mark.parametrize("bits", ["4", "4-", "8-4", "1-8", "auto-8"])
def test_bounds_that_are_none_are_refused(capsys, bits):
    assert main(["train", *WIDE, "--bits", bits, "--dry-run"]) == 2
    assert "Expected" in capsys.readouterr().err


def test_bounds_can_be_given_in_one_word(capsys):
    assert main(["train", *WIDE, "--bits", "4-6", "--dry-run", "--json"]) == 0
    precision = json.loads(capsys.readouterr().out)["recipe"]["precision"]
    assert (precision["min_bits"], precision["max_bits"]) == (4, 6)


@pytest.fixture
def states(monkeypatch):
    """The model's state as each precision begins; up to 3 bits the fifth loss is NaN."""
    begun, steps = {}, []
    set_bits, forward = QuantizedModel.set_bits, QuantizedModel.forward

    def remember(model, bits, grad_bits):
        set_bits(model, bits, grad_bits)
        begun[bits] = {name: value.clone() for name, value in model.state_dict().items()}
        steps.clear()

    def spoilt(model, x):
        steps.append(1)
        few = model.precision.weight_bits["scheduled"] <= 3
        return forward(model, x) * (float("nan") if few and len(steps) == 5 else 1.0)

    monkeypatch.setattr(QuantizedModel, "set_bits", remember)
    monkeypatch.setattr(QuantizedModel, "forward", spoilt)
    return begun


def test_a_precision_at_which_the_loss_explodes_is_gone_back_from(recipe, states, tmp_path):
    outcome = range_test(recipe("model.args.width=16"), steps=30)

    assert [entry.diverged for entry in outcome.progress][:3] == [True, True, False]
    assert [len(entry.loss) for entry in outcome.progress][:3] == [4, 4, 30]
    assert outcome.min_bits >= 4
    for bits in (3, 4):
        assert all(torch.equal(value, states[2][name]) for name, value in states[bits].items() if name != "bits")
    plot_range_test(outcome.to_dict(), tmp_path / "range.png")
    assert json.loads(json.dumps(outcome.to_dict()))["precisions"][0]["diverged"]


def test_a_loss_that_explodes_at_the_upper_bound_is_an_error(recipe, states):
    with pytest.raises(TrainingDivergedError, match="at 3 bits, step 5"):
        range_test(recipe("precision.max_bits=3"), steps=30)
