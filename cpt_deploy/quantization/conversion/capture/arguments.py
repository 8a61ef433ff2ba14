"""Normalise the arguments of traced calls to the form that the vocabulary reads: positional, sequences unpacked."""

import operator
from typing import Any

import torch
from torch import fx

_SIGNATURES = {
    **dict.fromkeys(("add", "mul", "sub", "div"), ("input", "other")),
    **dict.fromkeys(("cat", "concat"), ("tensors", "dim")),
    "mean": ("input", "dim", "keepdim"),
    "flatten": ("input", "start_dim", "end_dim"),
    "chunk": ("input", "chunks", "dim"),
    "split": ("input", "split_size", "dim"),
    "transpose": ("input", "dim0", "dim1"),
    "permute": ("input", "dims"),
}
"""Arguments of functions and methods in their order; `input` is the tensor of a method."""

_ALIASES = {"axis": "dim", "self": "input", "tensor": "input", "split_size_or_sections": "split_size"}


def give_by_position(traced: fx.GraphModule) -> None:
    """Make keyword arguments positional, and remove arguments that have no effect."""
    for node in traced.graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        names = _SIGNATURES.get(target.removesuffix("_"))
        if node.op not in ("call_function", "call_method") or names is None or not node.kwargs:
            continue
        named = {_ALIASES.get(name, name): value for name, value in node.kwargs.items()}
        if named.get("alpha") == 1:
            del named["alpha"]
        values = list(node.args)
        while len(values) < len(names) and names[len(values)] in named:
            values.append(named.pop(names[len(values)]))
        node.args, node.kwargs = tuple(values), named


def unpack_sequences(traced: fx.GraphModule) -> bool:
    """Rewrite concatenations of consecutive parts of a split tensor to name each part; return whether there were any.

    `torch.cat(x.chunk(3, 1), 1)` is traced with the tuple as one value.
    """
    found = False
    for node in traced.graph.nodes:
        if node.target in (torch.cat, torch.concat) and node.args and isinstance(node.args[0], fx.Node):
            with traced.graph.inserting_before(node):
                parts = _parts(node.args[0], traced)
            if parts is not None:
                node.args, found = (parts, *node.args[1:]), True
    if found:
        traced.graph.eliminate_dead_code()
        traced.recompile()
    return found


def _parts(sequence: fx.Node, traced: fx.GraphModule) -> list[fx.Node] | None:
    if sequence.target is operator.getitem and isinstance(sequence.args[1], slice):
        source: Any = sequence.args[0]
        parts = _parts(source, traced)
        return None if parts is None else parts[sequence.args[1]]
    count = sequence.meta.get("parts")
    if count is None:
        return None
    return [traced.graph.call_function(operator.getitem, (sequence, index)) for index in range(count)]
