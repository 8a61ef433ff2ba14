"""Capture the state of a run in a checkpoint, and restore it: model, optimizer, averaged weights, generators."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cpt_deploy.errors import CheckpointError
from cpt_deploy.training.randomness import random_state, restore_random_state
from cpt_deploy.training.run_directory.checkpoints import Checkpoint


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    progress: Mapping[str, Any],
    task: Mapping[str, Tensor],
) -> Checkpoint:
    """Collect the state of a run.

    Args:
        model: The model in training.
        optimizer: Its optimizer.
        averaged: The running average of the weights, if there is one.
        progress: Step, data position, counts; JSON types.
        task: Tensors that the task carries from step to step.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"task.{name}": tensor for name, tensor in task.items()}
    if averaged is not None:
        tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, values in optimizer_state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    generators, generator_state = random_state()
    tensors |= {f"random.{name}": tensor for name, tensor in generators.items()}
    return Checkpoint(tensors, {"progress": dict(progress), "optimizer": plain, "random": generator_state})


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedModel | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore model, optimizer, average and generators from a checkpoint; return its progress and its task's state.

    Raises:
        CheckpointError: If the checkpoint belongs to another model or optimizer.
    """
    sections: dict[str, dict[str, Tensor]] = {name: {} for name in ("model", "averaged", "optimizer", "random", "task")}
    for name, tensor in checkpoint.tensors.items():
        section, _, key = name.partition(".")
        sections[section][key] = tensor
    try:
        model.load_state_dict(sections["model"])
        if averaged is not None:
            averaged.load_state_dict(sections["averaged"])
        _restore_optimizer(optimizer, sections["optimizer"], checkpoint.state["optimizer"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Expected a checkpoint of this model and optimizer, but got: {str(error).splitlines()[0]}",
            hint="resume with the recipe that the run began with",
        ) from error
    restore_random_state(sections["random"], checkpoint.state["random"])
    return dict(checkpoint.state["progress"]), sections["task"]


def all_finite(model: nn.Module) -> bool:
    """Return whether no weight or statistic of a model is NaN or infinite."""
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in floats]).all())


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Mapping[str, Any]]
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        # The memory layout decides the order of arithmetic, so a moment must have that of its parameter again.
        like = parameters[int(index)]
        value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[key] = value
    for index, values in plain.items():
        state.setdefault(int(index), {}).update(values)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
