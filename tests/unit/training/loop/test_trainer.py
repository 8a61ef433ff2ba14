import json

import pytest
import torch
from safetensors.torch import load_file

from cpt_deploy.errors import RunInterruptedError, TrainingDivergedError, UsageError
from cpt_deploy.quantization.training_step.products import has_bf16_units
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import load_run, train


def test_run_leaves_what_the_design_says(recipe, tmp_path):
    report = train(recipe(), tmp_path / "run")

    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard/events")}
    assert len(events) == 1
    assert names - events == {
        "recipe.yaml",
        "metrics.csv",
        "curves.png",
        "model.safetensors",
        "report.json",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_recipe_of_the_run_repeats_the_run(recipe, tmp_path, outcome, finished):
    train(recipe(), tmp_path / "first")

    train(load_recipe(tmp_path / "first" / "recipe.yaml"), tmp_path / "second")

    assert outcome(tmp_path / "first") == finished()
    assert outcome(tmp_path / "second") == finished()


def test_seed_changes_the_result(recipe, tmp_path, outcome):
    train(recipe("train.steps=4"), tmp_path / "first")
    train(recipe("train.steps=4", "seed=1"), tmp_path / "second")

    assert outcome(tmp_path / "first")["weights"] != outcome(tmp_path / "second")["weights"]


def test_random_numbers_of_the_caller_are_not_touched(recipe, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    train(recipe("train.steps=2"), tmp_path / "run")

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.by_default("modules", "float32")
@pytest.mark.parametrize("compute", ["modules", "float32", "bf16"])
def test_diverged_run_names_step_bits_and_checkpoint(recipe, tmp_path, compute):
    if compute == "bf16" and not has_bf16_units():
        pytest.skip("this processor has no bfloat16 units")
    rates = ("optimizer.lr=1e30", "lr.name=constant", "lr.warmup_steps=11", "lr.warmup_factor=0")
    with pytest.raises(TrainingDivergedError) as caught:
        train(recipe(*rates, f"train.compute={compute}"), tmp_path / "a")

    message = str(caught.value)
    assert "at step" in message
    assert "bits forward and 8 backward" in message
    assert "no checkpoint" in message
    assert "optimizer.lr" in caught.value.hint


def test_diverged_run_keeps_its_last_good_checkpoint(recipe, tmp_path):
    broken = recipe(
        "optimizer.lr=1e-3", "train.swa={enabled: true, start: 0.6, lr: 1e30}", "train.checkpoint_every=4 steps"
    )

    with pytest.raises(TrainingDivergedError, match=r"the last good checkpoint is .*last\.safetensors"):
        train(broken, tmp_path / "run")

    tensors = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith("model."))


def test_reporter_hears_the_run(recipe, tmp_path, recorder):
    train(recipe(), tmp_path / "run", reporter=recorder)

    plan = recorder.plan
    assert (plan.steps_per_epoch, plan.total_steps, plan.first_step) == (11, 22, 0)
    assert (plan.train_images, plan.test_images, plan.classes) == (1442, 355, 10)
    steps = recorder.steps
    assert [event.step for event in steps] == list(range(1, 23))
    assert [event.bits for event in steps[:11]] == [event.bits for event in steps[11:]]
    assert (steps[0].bits, steps[-1].bits) == (5, 8)  # of a short run
    assert [(event.step, event.calibrated) for event in recorder.evaluations] == [(11, False), (22, False), (22, True)]
    assert recorder.report.test == recorder.evaluations[-1]


def test_cost_is_that_of_the_schedule_and_the_layers(recipe, tmp_path, recorder):
    report = train(recipe("train.steps=8"), tmp_path / "run", reporter=recorder)
    layers = load_run(tmp_path / "run").model.layers()
    cycle, fixed = (sum(layer.macs for layer in layers if layer.group == group) for group in ("scheduled", "fixed"))

    bits = [event.bits for event in recorder.steps]
    spent = sum(128 * (cycle * (b * b + 16 * b) + fixed * (64 + 128)) for b in bits)
    static = 8 * 128 * (cycle + fixed) * 192
    assert report.cost["gbitops"] == pytest.approx(spent / 1e9)
    assert report.cost["ratio_to_static"] == pytest.approx(spent / static)


def test_static_precision_costs_what_static_precision_costs(recipe, tmp_path):
    report = train(recipe("train.steps=4", "precision.schedule=static"), tmp_path / "run")

    assert report.cost["ratio_to_static"] == pytest.approx(1)


def test_average_of_one_is_the_last_weights(recipe, tmp_path, outcome, finished):
    train(recipe("train.swa={enabled: true, start: 1.0}"), tmp_path / "averaged")

    assert outcome(tmp_path / "averaged")["weights"] == finished()["weights"]


def test_averaged_weights_are_the_mean_of_the_epochs(recipe, tmp_path, train_until, interrupt):
    averaged = "train.swa={enabled: true, start: 0.5}"
    train(recipe(averaged), tmp_path / "run")
    with pytest.raises(RunInterruptedError):
        train_until(tmp_path / "half", 11, interrupt(), averaged)

    first = load_file(tmp_path / "half" / "checkpoints" / "last.safetensors")
    last = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    result = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("network.conv1.weight", "network.bn1.weight", "network.fc.weight"):  # calibration rounds offsets
        mean = (first[f"model.{name}"] + last[f"model.{name}"]) / 2
        assert torch.allclose(result[name], mean, rtol=1e-5, atol=1e-7)


def test_weights_are_averaged_as_often_as_the_recipe_says(recipe, tmp_path):
    train(recipe("train.swa={enabled: true, start: 0.5, every: 5 steps}"), tmp_path / "run")

    kept = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert int(kept["averaged.n_averaged"]) == 3  # after steps 15, 20 and 22, the last


def test_gradient_clipping_bounds_a_step(recipe, tmp_path, train_until, interrupt):
    overrides = ("optimizer={momentum: 0, weight_decay: 0, lr: 1.0}", "lr.name=constant", "train.grad_clip=0.01")
    for step in (1, 2):
        with pytest.raises(RunInterruptedError):
            train_until(tmp_path / str(step), step, interrupt(), *overrides)

    before, after = (load_file(tmp_path / str(step) / "checkpoints" / "last.safetensors") for step in (1, 2))
    names = [name for name in before if name.endswith(("weight", "bias")) and name.startswith("model.")]
    moved = sum(float((after[name] - before[name]).square().sum()) for name in names) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_trains_too(recipe, tmp_path):
    report = train(recipe("train.amp=bf16", "train.steps=3"), tmp_path / "run")

    assert report.steps == 3


def test_schedule_outside_the_bounds_is_refused(recipe, tmp_path, own_module):
    own_module(
        "own_schedule", "class High:\n    def bits_at(self, step, total_steps):\n        return 9\nhigh = High()\n"
    )

    with pytest.raises(UsageError, match=r"within 3\.\.8 bits, but got 9\.\.9"):
        train(recipe("precision.schedule=own_schedule:high"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_device_that_is_not_there_is_refused(recipe, tmp_path):
    with pytest.raises(UsageError, match="an available device"):
        train(recipe("train.device=cuda:99"), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.name=resnet19", "known model"),
        ("data.name=digit", "known data set"),
        ("data.augment=[{name: flip}]", "known augmentation"),
        ("precision.cycles=1000", "cycles"),
    ],
)
def test_wrong_name_leaves_no_directory(recipe, tmp_path, override, reason):
    with pytest.raises(UsageError, match=reason):
        train(recipe(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_digits_learn_on_a_gpu_and_resume_exactly(recipe, tmp_path, train_until, outcome, interrupt):
    gpu = "train.device=cuda"
    report = train(recipe(gpu, "train.epochs=10"), tmp_path / "long")
    train(recipe(gpu), tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train_until(tmp_path / "parts", 13, interrupt(), gpu)
    train(recipe(gpu), tmp_path / "parts", resume=True)

    assert report.figure > 0.8
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_quickstart_learns_digits(tmp_path):
    report = train(load_recipe("digits-quickstart", ["train.device=cpu"]), tmp_path / "run")

    assert report.figure >= 0.97
