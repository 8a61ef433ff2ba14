import copy
from functools import partial

import pytest
import torch
from torch import nn

from cpt_deploy.recipe import OptimizerSettings
from cpt_deploy.training.loop.optimizers import build_optimizer, set_learning_rate


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_sgd_has_its_settings(model):
    optimizer = build_optimizer(model, OptimizerSettings(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.02))

    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 0.02)


def test_adamw_has_its_settings(model):
    optimizer = build_optimizer(model, OptimizerSettings(name="adamw", lr=1e-3, betas=(0.8, 0.95), weight_decay=0.05))

    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_norms_and_biases_can_be_spared_from_weight_decay(model):
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1, decay_norm_and_bias=False))

    decayed, plain = optimizer.param_groups
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (OptimizerSettings(lr=0.1, nesterov=True), partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)),
        (OptimizerSettings(name="adamw", lr=0.1), partial(torch.optim.AdamW, lr=0.1)),
    ],
    ids=["sgd", "adamw"],
)
def test_steps_are_bit_identical_to_those_of_the_optimizer_of_torch(model, settings, kind):
    settings = settings.model_copy(update={"weight_decay": 0.01})
    other = copy.deepcopy(model)
    ours, torchs = build_optimizer(model, settings), kind(other.parameters(), weight_decay=0.01)
    for _ in range(3):
        for network, optimizer in ((model, ours), (other, torchs)):
            optimizer.zero_grad()
            network(torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)).square().sum().backward()
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    torchs.load_state_dict(ours.state_dict())  # checkpoints are the same, both ways
    ours.load_state_dict(torchs.state_dict())


def test_learning_rate_is_set_for_all(model):
    optimizer = build_optimizer(model, OptimizerSettings(decay_norm_and_bias=False))

    set_learning_rate(optimizer, 0.25)

    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
