"""Count the multiply-accumulates of the layers that onnxruntime executes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from cpt_deploy.onnx_graph.reading.network import attributes_of

RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})
_PAST_KEY = {"Attention": 4, "MultiHeadAttention": 6}
"""The input with the keys of earlier calls, where queries, keys and values are inputs of their own."""

Sizes = tuple[int, ...]
ShapeOf = Callable[[str], Sizes | None]


def macs_of(node: onnx.NodeProto, factor: str, shape: ShapeOf) -> int | None:
    """Return the multiply-accumulates of a call of a layer; `None` if unknown.

    Args:
        node: Its operator.
        factor: Name of its weights or second factor.
        shape: Returns the shape of a tensor; `None` if unknown.
    """
    if node.op_type == "Einsum":
        return _einsum(node, shape)
    # How much of the buffer of earlier keys GroupQueryAttention reads depends on values.
    read, weight, made = shape(node.input[0]), shape(factor), shape(node.output[0])
    if read is None or weight is None or node.op_type == "GroupQueryAttention":
        return None
    if node.op_type in RECURRENT:
        return math.prod(read[:2]) * (math.prod(weight) + math.prod(shape(node.input[2]) or (0,)))
    count = _COUNTS.get(node.op_type, _product)
    return None if made is None else count(_Layer(node, read, weight, made, shape))


@dataclass(frozen=True)
class _Layer:
    node: onnx.NodeProto
    read: Sizes
    weight: Sizes
    made: Sizes
    shape: ShapeOf


def _product(layer: _Layer) -> int:
    transposed = attributes_of(layer.node).get("transA", 0)
    return math.prod(layer.made) * layer.read[-2 if transposed else -1]


def _convolution(layer: _Layer) -> int:
    return math.prod(layer.made) * math.prod(layer.weight[1:])


def _transposed_convolution(layer: _Layer) -> int:
    return math.prod(layer.read) * math.prod(layer.weight[1:])


def _projections(layer: _Layer) -> int:
    return math.prod(layer.read[:2]) * math.prod(layer.weight)


def _attention(layer: _Layer) -> int | None:
    """Count the products of queries with keys and of their softmax with values; ONNX's Attention has no weights."""
    node = layer.node
    if node.op_type == "Attention" and node.domain:
        return _projections(layer)
    place = _PAST_KEY[node.op_type]
    past = layer.shape(node.input[place]) if place < len(node.input) and node.input[place] else (0, 0)
    keys = None if past is None else layer.weight[-2] + past[-2]
    return None if keys is None else (math.prod(layer.read) + math.prod(layer.made)) * keys


def _einsum(node: onnx.NodeProto, shape: ShapeOf) -> int | None:
    """Return the product of all sizes of a product of two tensors; one tensor alone is not multiplied."""
    equation = attributes_of(node)["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    terms, operands = text.replace(" ", "").partition("->")[0].split(","), [shape(name) for name in node.input]
    if len(terms) == 1:
        return 0
    if len(terms) != 2 or "." in text or None in operands:
        return None
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, size in zip(term, operand or (), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


_COUNTS: Mapping[str, Callable[[_Layer], int | None]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv", "NhwcFusedConv", "QLinearConv"), _convolution),
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "QAttention": _projections,
}
"""How the work of layers that are no plain products is counted."""
