"""Convert calls of PyTorch operators to float operations of a frozen graph, which are plain data, and back."""

import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Constant, Embed, Float

#: Functions for arithmetic on sizes, and for elements of tuples.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{function.__name__}": function
    for function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.getitem)
}
#: ATen operators with side effects, which a graph must not call.
_FORBIDDEN = frozenset({"from_file", "save", "set_data", "resize"})


def encode(target: Any, arguments: Any, options: Any, inputs: Sequence[fx.Node]) -> tuple[str, str]:
    """Return name and arguments of a call as the fields of `Float`.

    Raises:
        ConversionError: If a graph cannot hold the operation.
    """
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = str(target)
    else:
        name = f"operator.{getattr(target, '__name__', target)}"
    if name.startswith("operator.") and name not in _FUNCTIONS:
        raise ConversionError(f"Expected operators of ATen in float parts, but got {target}")

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"input": inputs.index(value)}
        if isinstance(value, tuple | list):
            return [plain(part) for part in value]
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
            kind = type(value).__name__
            return {kind: str(value).removeprefix("torch.")}
        return value

    arguments, named = [plain(value) for value in arguments], {key: plain(value) for key, value in options.items()}
    return name, json.dumps([_same_scalars(target, arguments), named])


def _same_scalars(target: Any, arguments: list[Any]) -> list[Any]:
    """Return arguments whose scalars are all floats if one is: `torch.onnx` has no form of `clamp(x, -1, 0.5)`."""
    kinds = [str(argument.type) for argument in target._schema.arguments] if hasattr(target, "_schema") else []
    scalar = [kind in ("number", "Optional[number]") for kind in kinds[: len(arguments)]]
    mixed = any(isinstance(value, float) for value, is_scalar in zip(arguments, scalar, strict=False) if is_scalar)
    return [
        float(value) if mixed and is_scalar and isinstance(value, int) else value
        for value, is_scalar in zip(arguments, scalar or [False] * len(arguments), strict=True)
    ]


def float_call(target: str, inputs: tuple[str, ...], output: str, *arguments: Any) -> Float:
    """Return the operation that calls an ATen operator with tensors, then plain arguments."""
    entries = [{"input": i} for i in range(len(inputs))]
    return Float(inputs, output, target, json.dumps([[*entries, *arguments], {}]))


def call(operation: Float, inputs: Sequence[Any]) -> Any:
    """Execute a float operation.

    Raises:
        ConversionError: If it names no operator without side effects.
    """
    arguments, options = arguments_of(operation, inputs)
    return function_of(operation.target)(*arguments, **options)


def arguments_of(operation: Float, inputs: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments of a float operation."""
    arguments, options = json.loads(operation.arguments)

    def value(entry: Any) -> Any:
        if isinstance(entry, list):
            return [value(part) for part in entry]
        if isinstance(entry, dict):
            (kind, content), *_ = entry.items()
            if kind == "input":
                return inputs[content]
            return torch.device("cpu") if kind == "device" else getattr(torch, content)
        return entry

    return [value(entry) for entry in arguments], {key: value(entry) for key, entry in options.items()}


def function_of(target: str) -> Callable[..., Any]:
    """Return the function that a float operation names.

    Raises:
        ConversionError: If it is no operator without side effects.
    """
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None) if namespace == "aten" else None
    if found is None or name in _FORBIDDEN or found._schema.is_mutable:
        raise ConversionError(f"Expected an operator that computes, but got {target!r}")
    result: Callable[..., Any] = found
    return result


def float_constants(graph: IntegerGraph) -> dict[str, Tensor]:
    """Return the tensors that float operations and embeddings read, by name."""
    found: dict[str, Tensor] = {}
    for operation in graph.operations:
        if isinstance(operation, Constant):
            found[operation.output] = torch.from_numpy(operation.value.copy())
        elif isinstance(operation, Embed):
            found[f"{operation.output}.codes"] = torch.from_numpy(operation.codes.copy())
            found[f"{operation.output}.scales"] = torch.from_numpy(operation.scales.copy())
    return found
