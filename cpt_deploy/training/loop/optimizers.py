"""Build the optimizer of a recipe and set its learning rate."""

from typing import Any

import torch
from torch import nn

from cpt_deploy.recipe import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Build the optimizer of a model's parameters.

    With `decay_norm_and_bias` off, one-dimensional parameters (normalisation, biases) get no weight decay.

    Args:
        model: The model, on its device.
        settings: Kind and parameters.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if settings.decay_norm_and_bias or parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
