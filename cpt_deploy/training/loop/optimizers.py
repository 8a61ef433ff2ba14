"""Build the optimizer of a recipe and set its learning rate."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from cpt_deploy.recipe import OptimizerSettings

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


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
        adamw: torch.optim.Optimizer = _not_compiled(torch.optim.AdamW)(groups, lr=settings.lr, betas=settings.betas)
        return adamw
    kind = _not_compiled(torch.optim.SGD)
    sgd: torch.optim.Optimizer = kind(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    return sgd


@functools.cache
def _not_compiled(kind: type[Kind]) -> Callable[..., Kind]:
    """Return an optimizer class with plain methods, which no `torch.compile` can have in its graph.

    Torch wraps these methods so that its compiler leaves them out. A wrapper's first call imports the compiler, which
    takes most of the time of `import torch`, and nothing here compiles a step.
    """
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(methods["step"])  # as the wrapper of `step` does
    return type(kind.__name__, (kind,), methods)


_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
