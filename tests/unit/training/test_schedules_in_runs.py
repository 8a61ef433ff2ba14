"""Schedules of groups, of gradients and those that follow the loss, in whole runs: bits, cost, resuming, processes."""

import csv
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from cpt_deploy.errors import RunInterruptedError, UsageError
from cpt_deploy.integer import freeze
from cpt_deploy.precision import quantized_steps
from cpt_deploy.quantization.scheduled_model import BITS_KEY
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import load_run, train
from cpt_deploy.training.distributed.process_group import ALONE
from cpt_deploy.training.loop.setup import build_network
from cpt_deploy.training.run_directory.checkpoints import read_checkpoint
from cpt_deploy.training.run_directory.metrics_log import read_metrics
from cpt_deploy.training.task import load_task
from cpt_deploy.workflows.bit_allocation import bits_trained_at

# 22 steps; a period is two of them and its threshold is wide, so bits rise early and to the last stage.
PROGRESSIVE = (
    "precision.schedule=progressive",
    "precision.grad_schedule=progressive",
    "precision.grad_min_bits=6",
    "precision.progressive.stages=[3, 4, 6, 8]",
    "precision.progressive.grad_stages=[6, 6, 8, 8]",
    "precision.progressive.threshold=2",
    "precision.progressive.decay=1",
    "precision.progressive.window=2",
    "precision.progressive.every=2 steps",
    "train.log_every=1",
)
EXPECTED = [3] * 4 + [4] * 4 + [6] * 4 + [8] * 10
EXPECTED_GRADIENTS = [6] * 8 + [8] * 14


def logged(directory, column):
    with (directory / "metrics.csv").open(newline="") as file:
        return [int(row[column]) for row in csv.DictReader(file) if row["lr"]]


def weight(forward, backward):
    return forward * forward + 2 * forward * backward


def test_bits_rise_where_the_loss_is_flat_and_cost_what_they_are(recipe, tmp_path, recorder):
    report = train(recipe(*PROGRESSIVE), tmp_path / "run", reporter=recorder)

    assert logged(tmp_path / "run", "bits") == EXPECTED
    assert logged(tmp_path / "run", "grad_bits") == EXPECTED_GRADIENTS
    assert recorder.plan.relative_cost is None
    assert report.bits["shares"] == pytest.approx({"3": 4 / 22, "4": 4 / 22, "6": 4 / 22, "8": 10 / 22})
    macs = {"scheduled": 0, "fixed": 0}
    for layer in load_run(tmp_path / "run").model.layers():
        macs[layer.group] += layer.macs
    spent = sum(
        (macs["scheduled"] * weight(bits, grads) + macs["fixed"] * weight(8, grads)) * 128
        for bits, grads in zip(EXPECTED, EXPECTED_GRADIENTS, strict=True)
    )
    assert report.cost["gbitops"] == pytest.approx(spent / 1e9)


@pytest.mark.by_default("3")
@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_follows_the_loss_goes_on_as_if_nothing_had_been(
    step, recipe, train_until, interrupt, finished, outcome, tmp_path
):
    directory = tmp_path / "run"
    with pytest.raises(RunInterruptedError):
        train_until(directory, step, interrupt(), *PROGRESSIVE)
    kept = read_checkpoint(directory / "checkpoints" / "last.safetensors").state["progress"]["following"]
    assert len(kept["schedules"]) == 2
    assert kept["samples"] == (step % 2) * 128

    train(recipe(*PROGRESSIVE), directory, resume=True)

    assert outcome(directory) == finished(*PROGRESSIVE)


def test_gradients_can_cycle_too(recipe, tmp_path):
    cyclic = (
        "precision.grad_schedule=linear",
        "precision.grad_min_bits=6",
        "precision.grad_max_bits=8",
        "train.log_every=1",
    )
    train(recipe(*cyclic), tmp_path / "run")
    # Two cycles of 11 steps; rint(6 + 2 z) at z = 0, 1/11, 2/11, ...
    assert logged(tmp_path / "run", "grad_bits") == [round(6 + 2 * step / 11) for step in range(11)] * 2


def test_groups_run_at_bits_of_their_own_and_are_frozen_at_their_bound(tmp_path, recipe):
    path = tmp_path / "groups.yaml"
    path.write_text(
        json.dumps(  # JSON is YAML
            {
                "name": "grouped",
                "model": {"name": "tiny", "args": {"width": 4}},
                "data": {"name": "digits"},
                "precision": {
                    "cycles": 2,
                    "groups": [{"match": "groups.1.*", "schedule": "linear", "min_bits": 4, "max_bits": 6}],
                },
                "train": {"epochs": 1, "batch_size": 128, "log_every": 1, "calibration_batches": 2, "device": "cpu"},
            }
        )
    )
    report = train(load_recipe(path), tmp_path / "run")

    shown = [row["group_bits"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["lr"]]
    assert shown == [f"group1={round(4 + 2 * (2 * step / 11 % 1))}" for step in range(11)]
    run = load_run(tmp_path / "run")
    macs: dict[str, int] = {}
    for layer in run.model.layers():
        macs[layer.group] = macs.get(layer.group, 0) + layer.macs
    assert report.model["layers"] == {"fixed": 2, "scheduled": 2, "group1": 3}
    main, own = run.recipe.precision.forward_schedule(), run.recipe.precision.group_schedules()["group1"]
    spent = 128 * sum(
        macs["fixed"] * weight(8, 8)
        + macs["scheduled"] * weight(main.bits_at(step, 11), 8)
        + macs["group1"] * weight(own.bits_at(step, 11), 8)
        for step in range(11)
    )
    static = 128 * 11 * ((macs["fixed"] + macs["scheduled"]) * weight(8, 8) + macs["group1"] * weight(6, 8))
    assert report.cost["gbitops"] == pytest.approx(spent / 1e9)
    assert report.cost["gbitops_static_upper"] == pytest.approx(static / 1e9)
    bits = {operation.source: operation.bits for operation in freeze(run.model).weighted()}
    assert bits["groups.1.0.conv1"] == 6
    assert bits["groups.0.0.conv1"] == 8


def test_a_group_that_matches_no_layer_is_one_clear_line(recipe, tmp_path):
    given = recipe()
    wrong = given.model_validate(
        {**given.model_dump(), "precision": {"groups": [{"match": "layer3.*"}]}, "train": {"epochs": 1}}
    )
    with pytest.raises(UsageError, match=r"matches layers of the model, but got 'layer3\.\*'") as caught:
        train(wrong, tmp_path / "run")
    assert "groups.0.0.conv1" in (caught.value.hint or "")


DELAYED = ("precision.delay=0.5", "precision.min_bits=3", "lr.decay_start=0.5", "train.log_every=1")
"""The first 11 of 22 steps in float32."""


def test_before_the_delay_is_over_a_run_is_that_of_the_network_given(recipe, tmp_path):
    given = recipe(*DELAYED)
    train(given, tmp_path / "run")

    task = load_task(given, torch.device("cpu"))
    torch.manual_seed(given.seed)
    network = build_network(task.recipe, 10, task.data.preprocessing)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    losses = []
    for x, y in task.stream(range(11), ALONE, pin_memory=False):
        loss = torch.nn.functional.cross_entropy(network(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["lr"]]
    assert [float(row["loss"]) for row in rows[:11]] == pytest.approx(losses, rel=1e-4)
    assert {float(row["lr"]) for row in rows[:11]} == {0.1}


def test_delayed_quantization_costs_float32_first_and_ends_in_exact_integers(recipe, tmp_path):
    report = train(recipe(*DELAYED), tmp_path / "run")

    after = [round(3 + 5 * (1 - math.cos(math.pi * (2 * step / 11 % 1))) / 2) for step in range(11)]
    assert logged(tmp_path / "run", "bits") == [32] * 11 + after
    assert logged(tmp_path / "run", "grad_bits") == [32] * 11 + [8] * 11
    run = load_run(tmp_path / "run")
    macs = {"scheduled": 0, "fixed": 0}
    for layer in run.model.layers():
        macs[layer.group] += layer.macs
    spent = sum(macs.values()) * 11 * weight(32, 32) + sum(
        macs["scheduled"] * weight(bits, 8) + macs["fixed"] * weight(8, 8) for bits in after
    )
    assert report.cost["gbitops"] == pytest.approx(128 * spent / 1e9)
    assert report.cost["gbitops_static_upper"] == pytest.approx(128 * sum(macs.values()) * 22 * weight(8, 8) / 1e9)
    assert {operation.bits for operation in freeze(run.model).weighted()} == {8}
    assert bits_trained_at(run) == sorted({8, *after})
    costs = {int(bits): cost["gbitops"] for bits, cost in report.steps_by_bits.items()}
    assert sum(costs[bits] for bits in [32] * 11 + after) == pytest.approx(report.cost["gbitops"])


def test_evaluations_before_quantization_are_not_the_best(recipe, tmp_path, recorder):
    settings = ("precision.delay=0.8", "precision.schedule=piecewise", "precision.points=[[0, 2]]", "train.final=best")
    train(recipe(*settings, "precision.min_bits=2", "train.eval_every=3 steps"), tmp_path / "run", reporter=recorder)
    best = {evaluation.step for evaluation in recorder.evaluations if evaluation.best}
    assert best
    assert min(best) > 22 - quantized_steps(0.8, 22)
    state = load_file(tmp_path / "run" / "model.safetensors")
    (bits,) = (tensor for name, tensor in state.items() if name.endswith(BITS_KEY))
    assert bits[1:].tolist() == [8] * 5


@pytest.mark.parametrize("step", [5, 15])
def test_a_delayed_run_goes_on_as_if_nothing_had_been(
    step, recipe, train_until, interrupt, finished, outcome, tmp_path
):
    directory = tmp_path / "run"
    with pytest.raises(RunInterruptedError):
        train_until(directory, step, interrupt(), *DELAYED)
    train(recipe(*DELAYED), directory, resume=True)
    assert outcome(directory) == finished(*DELAYED)
