"""Rewrite ATen operators of a graph: in-place ones out of place, and others to forms that `torch.onnx` can write."""

import math
from typing import Any

import torch
from torch import fx

from cpt_deploy.errors import ConversionError

aten = torch.ops.aten

#: Argument types that accept both int and float.
_NUMBERS = ("number", "Optional[number]")

#: Operators whose result shares memory with their argument.
_VIEWS = frozenset(
    {
        aten.view.default, aten.slice.Tensor, aten.select.int, aten.transpose.int, aten.permute.default,
        aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.chunk.default, aten.split.Tensor,
        aten.unbind.int, aten.flatten.using_ints, aten.reshape.default, aten.unflatten.int, aten.narrow.default,
    }
)  # fmt: skip


def is_aten(node: fx.Node) -> bool:
    """Return whether a node calls an ATen operator."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def is_mutating(node: fx.Node) -> bool:
    """Return whether a node overwrites its first argument."""
    return is_aten(node) and bool(node.target._schema.is_mutable)  # type: ignore[union-attr]


def make_out_of_place(traced: fx.GraphModule) -> None:
    """Rewrite in-place operators out of place; nodes that read the argument afterwards read the result.

    `view` becomes `reshape`, since quantizers may return another memory layout than the operators that they replace.

    Raises:
        ConversionError: If a part of a tensor is overwritten.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        if not is_mutating(node):
            continue
        source: Any = node.args[0]
        if source.target in _VIEWS and any(
            order.get(user, -1) > order[node] for user in source.all_input_nodes[0].users
        ):
            raise ConversionError(
                f"Expected operations that make tensors, but {node.target} overwrites a part of one",
                hint="write it out of place: torch.where, torch.cat or masked_fill",
            )
        node.target = _functional(node.target)
        for user in list(source.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(source, node)


def _functional(target: Any) -> Any:
    """Return `add.Tensor` for `add_.Tensor` and the like."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None)
    overload = None if packet is None else getattr(packet, target._overloadname, None)
    if not name.endswith("_") or overload is None:
        raise ConversionError(f"Expected operations that make tensors, but {target} overwrites one")
    return overload


def bring_to_known_forms(traced: fx.GraphModule) -> None:
    """Replace calls that `torch.onnx` writes wrongly or not at all by others that compute the same.

    The numbers of one call are all made floats if one is, and an average pooling with `divisor_override` becomes one
    divided by the window size, times a factor.
    """
    for node in list(traced.graph.nodes):
        if not is_aten(node):
            continue
        places = [i for i, argument in enumerate(node.target._schema.arguments) if str(argument.type) in _NUMBERS]
        numbers = [node.args[i] for i in places if i < len(node.args)]
        if any(isinstance(number, float) for number in numbers):
            node.args = tuple(
                float(value) if i in places and type(value) is int else value for i, value in enumerate(node.args)
            )
        divided = node.target is aten.avg_pool2d.default and len(node.args) > 6 and node.args[6] is not None
        if divided and not node.args[4]:  # freezing handles windows beyond the end
            _divide_by_window(traced, node)


def _divide_by_window(traced: fx.GraphModule, node: fx.Node) -> None:
    x, size, stride, padding, _, _, divisor = node.args
    sides: Any = size
    window = math.prod(sides) if len(sides) == 2 else sides[0] ** 2
    node.args = (x, size, stride, padding, False, True)
    with traced.graph.inserting_after(node):
        scaled = traced.graph.call_function(aten.mul.Tensor, (node, window / divisor))
    scaled.meta.update(node.meta)
    node.replace_all_uses_with(scaled, lambda user: user is not scaled)
