"""What a network takes and returns: one tensor each, or it is refused with what to do."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree

from cpt_deploy.errors import ConversionError, UsageError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what `torch.compile`, DataParallel or DistributedDataParallel were given: it computes the same."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of one input as a tuple.

    Raises:
        UsageError: If it is no sequence of positive whole numbers.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UsageError(
            f"Expected the shape of one input, such as (3, 32, 32), but got {shape!r}",
            hint="leave the batch dimension out",
        )
    return sizes


def check_parameters(model: nn.Module) -> None:
    """Make sure that a network has parameters in float32 that are numbers.

    Raises:
        ConversionError: If one has no values, another type or NaN; names it.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ConversionError(
                f"Expected parameters with values, but {name!r} has none yet",
                hint="load them, or run the network once on an input",
            )
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ConversionError(
                f"Expected parameters in float32, but {name!r} is in {parameter.dtype}",
                hint="prepare(model.float(), …)",
            )
        if bool(parameter.isnan().any()):
            raise ConversionError(
                f"Expected parameters that are numbers, but {name!r} has NaN", hint="load a sound checkpoint"
            )


def check_inputs(model: nn.Module) -> None:
    """Make sure that a network can be called with one tensor.

    Raises:
        ConversionError: If it needs more than one argument, or takes none; names them.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p for p in parameters if p.kind in given or p.kind is inspect.Parameter.KEYWORD_ONLY]
    needed = [p.name for p in named if p.default is inspect.Parameter.empty]
    takes_one = any(p.kind in (*given, inspect.Parameter.VAR_POSITIONAL) for p in parameters)
    if len(needed) > 1 or not takes_one:
        raise ConversionError(
            f"Expected a network with one input tensor, but {type(model).__name__}.forward takes "
            f"{', '.join(needed) or 'none'}",
            hint="wrap it in a module whose forward takes one tensor and makes the others of it, as by "
            "`torch.cat` and `split`",
        )


def only_output(result: Any, is_tensor: Callable[[Any], bool]) -> Any:
    """Return the one tensor that a network returns, which may stand in a tuple, a list or a dictionary.

    Args:
        result: What it returns, or what stands for it in a graph.
        is_tensor: Whether a part of it is a tensor, or stands for one.

    Raises:
        ConversionError: If it returns several tensors or none; says which.
    """
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if is_tensor(leaf)]
    if len(leaves) != 1:
        raise ConversionError(
            f"Expected a network that returns one tensor, but it returns {_description(result, len(leaves))}",
            hint="wrap it in a module whose forward returns one of them, or switch auxiliary outputs off",
        )
    return leaves[0]


def _description(result: Any, tensors: int) -> str:
    if isinstance(result, dict):
        return f"a dictionary with {', '.join(map(repr, result))}"
    if isinstance(result, tuple | list):
        return f"a {'tuple' if isinstance(result, tuple) else 'list'} of {len(result)} with {tensors} tensors"
    return f"{tensors} tensors in a {type(result).__name__}" if tensors else f"a {type(result).__name__}"
