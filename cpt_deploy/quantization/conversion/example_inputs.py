"""Derive the inputs of a network from example inputs: their names, types, free sizes and states, all checked."""

import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.quantization.graph.signature import DynamicShapes, Example, ExampleInputs, States
from cpt_deploy.signature import (
    AFTER,
    INPUT_NAME,
    TOKENS_NAME,
    FreeSize,
    Signature,
    Size,
    TensorSpec,
    factors_of,
    size_of,
)

_TYPES = (torch.float32, torch.int64, torch.int32, torch.bool)


def read_example(
    model: nn.Module, inputs: ExampleInputs, dynamic_shapes: DynamicShapes = None, states: States = None
) -> Example:
    """Derive the inputs of a network from example inputs.

    Args:
        model: The network.
        inputs: Example inputs; of their values only the range of integers matters.
        dynamic_shapes: The free dimensions beside the batch.
        states: Pairs (input, output) of names.

    Raises:
        UsageError: If the inputs are not such tensors, or `dynamic_shapes` or `states` do not fit them.
        ConversionError: If the network takes other inputs; names its parameters.
    """
    alone, by_name = isinstance(inputs, Tensor), isinstance(inputs, Mapping)
    if isinstance(inputs, Tensor):
        values: list[Any] = [inputs]
    else:
        values = list(inputs.values() if isinstance(inputs, Mapping) else inputs if _is_sequence(inputs) else ())
    if not values or not all(isinstance(value, Tensor) for value in values):
        others = sorted({type(value).__name__ for value in values if not isinstance(value, Tensor)})
        raise UsageError(
            "Expected example inputs as a tensor, a tuple of tensors or a dictionary of tensors, but got "
            + (f"one with {', '.join(others)} inside" if others else repr(inputs)),
            hint="for example prepare(model, torch.zeros(2, 3, 32, 32), config); wrap a model that takes nested ones",
        )
    _check_values(values)
    parameters = tuple(inputs) if isinstance(inputs, Mapping) else parameter_names(model, len(values))
    _check_takes(model, parameters, by_name=by_name)
    names = [TOKENS_NAME if not values[0].is_floating_point() else INPUT_NAME] if alone else list(parameters)
    free: dict[str, FreeSize] = {}
    specs = _by_input(dynamic_shapes, parameters, alone=alone)
    tensors = tuple(
        TensorSpec(name, str(value.dtype).removeprefix("torch."), _shape(name, value, spec, free))
        for name, value, spec in zip(names, values, specs, strict=True)
    )
    pairs = _states(states, tensors)
    sizes = {size for tensor in tensors if tensor.name not in dict(pairs) for size in tensor.shape}
    used = {name for size in sizes for name in factors_of(size)[0]}
    # `torch.export.Dim` has 0 as its minimum by default, which only sizes of states have
    free = {name: replace(size, least=max(size.least, int(name in used))) for name, size in free.items()}
    _check_filled(values, tensors, {name for name, size in free.items() if not size.least})
    ranges = tuple(_range(value, tensor.shape) for value, tensor in zip(values, tensors, strict=True))
    signature = Signature(tensors, (), tuple((name, name + AFTER) for name, _ in pairs), free)
    return Example(signature, parameters, by_name, ranges, pairs)


def _states(states: States, inputs: Sequence[TensorSpec]) -> tuple[tuple[str, str], ...]:
    if states is None:
        return ()
    known = {tensor.name: tensor for tensor in inputs}
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in states):
        raise UsageError(
            f"Expected states as pairs of names, (input, output), but got {states!r}",
            hint='for example states=[("state_0", "output_1")]',
        )
    pairs = tuple((str(before), str(after)) for before, after in states)
    for place in (0, 1):
        names = [pair[place] for pair in pairs]
        if len({*names}) < len(names):
            raise UsageError(f"Expected states with different names, but got {', '.join(names)}")
    for before, _ in pairs:
        if before not in known:
            raise UsageError(f"Expected states among the inputs {', '.join(known)}, but got {before!r}")
        if known[before].dtype != "float32":
            raise UsageError(f"Expected states of float32, but {before!r} is of {known[before].dtype}")
    if len(pairs) == len(inputs):
        raise UsageError("Expected an input that is no state, but all are states")
    return pairs


def _check_filled(values: Sequence[Tensor], tensors: Sequence[TensorSpec], may_be_empty: Set[str]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        filled = [
            size
            for size, name in zip(value.shape[1:], tensor.shape, strict=True)
            if not may_be_empty & {*factors_of(name)[0]}
        ]
        if not len(value) or 0 in filled:
            raise UsageError(
                f"Expected example inputs of which none is empty, but {tensor.name!r} is {tuple(value.shape)}"
            )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_values(values: Sequence[Tensor]) -> None:
    for value in values:
        if value.dtype not in _TYPES:
            raise UsageError(
                f"Expected example inputs of {', '.join(str(kind).removeprefix('torch.') for kind in _TYPES)}, "
                f"but got {value.dtype}"
            )
        if not value.dim():
            raise UsageError("Expected example inputs with a batch dimension first, but got one without dimensions")
    if len({len(value) for value in values}) > 1:
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        raise UsageError(f"Expected example inputs of one batch size, but got shapes {shapes}")


def _range(value: Tensor, shape: tuple[Size, ...]) -> tuple[Tensor, Tensor]:
    values = value.detach().cpu().to(torch.float64)
    if value.is_floating_point():
        return values.new_zeros(()), values.new_ones(())
    free = any(isinstance(size, str) for size in shape)
    least, most = (values.min(), values.max()) if free else (values.amin(0), values.amax(0))
    return least.clamp(max=0), most.clamp(min=1)


def parameter_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Return the names of the parameters that receive `count` positional values."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names.extend(f"{parameter.name}_{i}" for i in range(count - len(names)))
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return tuple([*names, *(f"input_{i}" for i in range(len(names), count))][:count])


def _check_takes(model: nn.Module, parameters: tuple[str, ...], *, by_name: bool) -> None:
    bind = inspect.signature(model.forward).bind
    try:
        bind(**dict.fromkeys(parameters)) if by_name else bind(*parameters)
    except TypeError as error:
        given = f"{len(parameters)} by {'name' if by_name else 'position'}"
        known = inspect.signature(model.forward).parameters.values()
        needed = [p.name for p in known if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        raise ConversionError(
            f"Expected a network that takes the example inputs ({given}), but {type(model).__name__}.forward takes "
            f"{', '.join(needed) or 'none'}: {error}",
            hint="give one tensor for each parameter that needs one, in a tuple or in a dictionary",
        ) from error


# --- free dimensions ------------------------------------------------------------------------------------------------


def _by_input(dynamic_shapes: DynamicShapes, parameters: Sequence[str], *, alone: bool) -> list[Any]:
    """Return the entry of `dynamic_shapes` for each input."""
    if dynamic_shapes is None:
        return [None] * len(parameters)
    if alone and isinstance(dynamic_shapes, Mapping) and all(isinstance(axis, int) for axis in dynamic_shapes):
        return [dynamic_shapes]
    if isinstance(dynamic_shapes, Mapping):
        unknown = [name for name in dynamic_shapes if name not in parameters]
        if unknown:
            raise UsageError(f"Expected dynamic_shapes of {', '.join(parameters)}, but got some of {unknown[0]!r}")
        return [dynamic_shapes.get(name) for name in parameters]
    if not _is_sequence(dynamic_shapes) or len(dynamic_shapes) != len(parameters):
        raise UsageError(
            f"Expected dynamic_shapes for {len(parameters)} inputs, but got {dynamic_shapes!r}",
            hint='as in torch.export: {2: Dim("height"), 3: Dim("width")} of each input',
        )
    return list(dynamic_shapes)


def _shape(name: str, value: Tensor, spec: Any, free: dict[str, FreeSize]) -> tuple[int | str, ...]:
    """Return the shape of an input without the batch; its free sizes are added to `free`."""
    axes = dict(spec) if isinstance(spec, Mapping) else dict(enumerate(spec or ()))
    if not all(isinstance(axis, int) and -value.dim() <= axis < value.dim() for axis in axes):
        raise UsageError(f"Expected dynamic_shapes of {name!r} by axes of {tuple(value.shape)}, but got {list(axes)}")
    dims = {axis % value.dim(): dim for axis, dim in axes.items()}
    return tuple(_size(name, int(value.shape[axis]), dims.get(axis), free) for axis in range(1, value.dim()))


def _size(name: str, example: int, dim: Any, free: dict[str, FreeSize]) -> int | str:
    if dim is None or isinstance(dim, int) or dim is Dim.STATIC:
        return example
    if not isinstance(dim, Dim):
        raise UsageError(
            f"Expected free dimensions of {name!r} as torch.export.Dim with a name, but got {dim!r}",
            hint='name it: Dim("height"); where sizes have to be multiples: 8 * Dim("height")',
        )
    root: Any = getattr(dim, "root", dim)
    derive = getattr(dim, "fn", lambda size: size)
    offset = int(derive(0))
    factor = int(derive(1)) - offset
    most = int(root.max) if isinstance(root.max, int) else None
    found = FreeSize((example - offset) // factor, max(0, int(root.min)), most)
    known = free.setdefault(root.__name__, found)
    if (
        known != found
        or (example - offset) % factor
        or found.example < found.least
        or found.example > (example if most is None else most)
    ):
        raise UsageError(
            f"Expected example inputs whose sizes fit dynamic_shapes, but {name!r} has size {example} where "
            f"{dim!r} is free"
            + (f", and another input has {root.__name__} = {known.example}" if known != found else "")
        )
    return size_of({root.__name__: factor}, offset)
