"""Translate ONNX operators to PyTorch modules and functions that `prepare` supports; refuse all other forms."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.models.imported.onnx_graph import OnnxNode
from cpt_deploy.models.imported.onnx_layers import batch_norm, convolution, fully_connected, per_channel

if TYPE_CHECKING:
    from cpt_deploy.models.imported.onnx_module import Builder

Translation = Callable[[OnnxNode, "Builder"], fx.Node | list[fx.Node]]

_HARD_SIGMOID = (1 / 6, 0.5)


def refuse(node: OnnxNode, what: str) -> ConversionError:
    """Return the error for a form of an operator that has no integer form."""
    return ConversionError(f"Expected {what}, but got another form of {node.describe()}")


def _bounds(node: OnnxNode, build: "Builder") -> tuple[float, float]:
    """Return the bounds of a Clip: attributes up to opset 10, operands later."""
    bounds = []
    for position, key, missing in ((1, "min", -float("inf")), (2, "max", float("inf"))):
        constant = build.constant(node, position)
        if constant is None and position < len(node.inputs) and node.inputs[position]:
            raise refuse(node, "constant bounds")
        bounds.append(float(node.attributes.get(key, missing)) if constant is None else float(constant))
    return bounds[0], bounds[1]


def _clip(node: OnnxNode, build: "Builder") -> fx.Node:
    low, high = _bounds(node, build)
    if low == 0 and high >= torch.finfo(torch.float32).max:
        return build.module(node, nn.ReLU())
    if (low, high) == (0, 6):
        return build.module(node, nn.ReLU6())
    if max(abs(low), abs(high)) >= torch.finfo(torch.float32).max:
        raise refuse(node, "a Clip with two bounds, or with 0 as the lower one")
    return build.module(node, nn.Hardtanh(low, high))


def _hard_sigmoid(node: OnnxNode, build: "Builder") -> fx.Node:
    alpha, beta = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
    if all(abs(got - usual) < 1e-6 for got, usual in zip((alpha, beta), _HARD_SIGMOID, strict=True)):
        return build.module(node, nn.Hardsigmoid())
    line = build.call(operator.add, build.call(operator.mul, build.value(node), alpha), beta)
    return build.module(node, nn.Hardtanh(0.0, 1.0), line)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _arithmetic(node: OnnxNode, build: "Builder") -> fx.Node:
    constants = [build.constant(node, 0), build.constant(node, 1)]
    if constants[0] is None and constants[1] is None:
        if node.kind not in {"Add", "Mul"}:
            raise refuse(node, "a constant operand")
        return build.call(operator.add if node.kind == "Add" else operator.mul, build.value(node), build.value(node, 1))
    position = 1 if constants[0] is None else 0
    constant = constants[position]
    assert constant is not None
    source = build.value(node, 1 - position)
    factor, offset = _line(node, constant.astype("float64"), constant_first=position == 0)
    if constant.size == 1:
        scaled = source if factor is None else build.call(operator.mul, source, float(factor.reshape(())))
        return scaled if offset is None else build.call(operator.add, scaled, float(offset.reshape(())))
    shape = build.shape(node.inputs[1 - position], node)
    return build.module(node, per_channel(node, factor, offset, shape), source)


def _line(node: OnnxNode, constant: Any, *, constant_first: bool) -> tuple[Any, Any]:
    """Return an operation with a constant as factor and offset, with None for 1 and 0."""
    if node.kind == "Add":
        return None, constant
    if node.kind == "Mul":
        return constant, None
    if node.kind == "Sub":
        return (constant * 0 - 1, constant) if constant_first else (None, -constant)
    if constant_first:
        raise refuse(node, "a constant divisor")
    return 1.0 / constant, None


def _sum(node: OnnxNode, build: "Builder") -> fx.Node:
    total = build.value(node)
    for position in range(1, len(node.inputs)):
        total = build.call(operator.add, total, build.value(node, position))
    return total


# --- pooling --------------------------------------------------------------------------------------------------------


def _window(node: OnnxNode) -> dict[str, Any]:
    kernel = tuple(node.attributes["kernel_shape"])
    pads = tuple(node.attributes.get("pads", (0,) * 2 * len(kernel)))
    automatic = node.attributes.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    if automatic or pads[: len(kernel)] != pads[len(kernel) :] or len(kernel) != 2:
        raise refuse(node, "pooling over two dimensions with the same padding at both ends")
    strides = tuple(node.attributes.get("strides", (1,) * len(kernel)))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return {"kernel_size": kernel, "stride": strides, "padding": pads[: len(kernel)], "ceil_mode": ceil}


def _max_pool(node: OnnxNode, build: "Builder") -> fx.Node:
    dilations = tuple(node.attributes.get("dilations", (1, 1)))
    return build.module(node, nn.MaxPool2d(**_window(node), dilation=dilations))


def _average_pool(node: OnnxNode, build: "Builder") -> fx.Node:
    window = _window(node)
    counts_padding = bool(node.attributes.get("count_include_pad", 0)) or not any(window["padding"])
    if any(dilation != 1 for dilation in node.attributes.get("dilations", (1,))):
        raise refuse(node, "pooling without dilation")
    return build.module(node, nn.AvgPool2d(**window, count_include_pad=counts_padding))


def _global_max(node: OnnxNode, build: "Builder") -> fx.Node:
    return build.module(node, nn.MaxPool2d(build.shape(node.inputs[0], node)[2:]))


def _global_average(node: OnnxNode, build: "Builder") -> fx.Node:
    return build.module(node, nn.AdaptiveAvgPool2d(1))


def _reduce_mean(node: OnnxNode, build: "Builder") -> fx.Node:
    constant = build.constant(node, 1)
    axes = node.attributes.get("axes", ()) if constant is None else constant.reshape(-1).tolist()
    rank = len(build.shape(node.inputs[0], node))
    if rank != 4 or sorted(int(axis) % rank for axis in axes) != [2, 3]:
        raise refuse(node, "a mean over height and width")
    average = build.module(node, nn.AdaptiveAvgPool2d(1))
    return average if node.attributes.get("keepdims", 1) else build.call(torch.flatten, average, 1)


# --- movements ------------------------------------------------------------------------------------------------------


def _reshape(node: OnnxNode, build: "Builder") -> fx.Node:
    before, after = (build.shape(name, node) for name in (node.inputs[0], node.outputs[0]))
    if before == after:
        return build.value(node)
    if len(after) == 2:
        return build.call(torch.flatten, build.value(node), 1)
    return build.method("reshape", build.value(node), -1, *after[1:])


def _transpose(node: OnnxNode, build: "Builder") -> fx.Node:
    rank = len(build.shape(node.inputs[0], node))
    order = [int(axis) for axis in node.attributes.get("perm", range(rank)[::-1])]
    if order[0] != 0:
        raise refuse(node, "a permutation that leaves the batch first")
    return build.method("permute", build.value(node), *order)


def _concat(node: OnnxNode, build: "Builder") -> fx.Node:
    parts = [build.value(node, position) for position in range(len(node.inputs))]
    return build.call(torch.cat, parts, int(node.attributes["axis"]))


def _split(node: OnnxNode, build: "Builder") -> list[fx.Node]:
    axis = int(node.attributes.get("axis", 0)) % len(build.shape(node.inputs[0], node))
    sizes = [build.shape(name, node)[axis] for name in node.outputs]
    parts = build.call(torch.split, build.value(node), sizes, axis)
    return [build.call(operator.getitem, parts, index) for index in range(len(sizes))]


def _same(node: OnnxNode, build: "Builder") -> fx.Node:
    return build.value(node)


def _activation(make: Callable[[OnnxNode], nn.Module]) -> Translation:
    return lambda node, build: build.module(node, make(node))


OPERATORS: dict[str, Translation] = {
    "Add": _arithmetic,
    "AveragePool": _average_pool,
    "BatchNormalization": batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": convolution,
    "Div": _arithmetic,
    "Dropout": _same,
    "Elu": _activation(lambda node: nn.ELU(float(node.attributes.get("alpha", 1.0)))),
    "Flatten": _reshape,
    "Gemm": fully_connected,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _activation(lambda node: nn.Hardswish()),
    "Identity": _same,
    "LeakyRelu": _activation(lambda node: nn.LeakyReLU(float(node.attributes.get("alpha", 0.01)))),
    "MatMul": fully_connected,
    "MaxPool": _max_pool,
    "Mul": _arithmetic,
    "ReduceMean": _reduce_mean,
    "Relu": _activation(lambda node: nn.ReLU()),
    "Reshape": _reshape,
    "Sigmoid": _activation(lambda node: nn.Sigmoid()),
    "Softplus": _activation(lambda node: nn.Softplus()),
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _arithmetic,
    "Sum": _sum,
    "Tanh": _activation(lambda node: nn.Tanh()),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""The translation of each operator, by operator type."""
