"""Translate ONNX operators with weights to PyTorch layers: convolutions, fully connected layers and BatchNorm."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cpt_deploy.errors import ConversionError
from cpt_deploy.models.imported.onnx_graph import OnnxNode, Shape

if TYPE_CHECKING:
    from cpt_deploy.models.imported.onnx_module import Builder

_CONVOLUTIONS: dict[int, Callable[..., nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


def convolution(node: OnnxNode, build: "Builder") -> fx.Node:
    """Return a convolution over one or two dimensions; uneven padding is expressed by a kernel with added zeros."""
    weight = build.weights(node, 1)
    dimensions = weight.dim() - 2
    if dimensions not in _CONVOLUTIONS:
        raise ConversionError(f"Expected a convolution over one or two dimensions, but got {node.describe()}")
    attributes = node.attributes
    strides, dilations = (tuple(attributes.get(key, (1,) * dimensions)) for key in ("strides", "dilations"))
    begins, ends = _paddings(node, build.shape(node.inputs[0], node)[2:], weight.shape[2:], strides, dilations)
    weight, padding = _evenly_padded(node, weight, begins, ends, dilations)
    groups = int(attributes.get("group", 1))
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    layer = _CONVOLUTIONS[dimensions](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        strides,
        padding,
        dilations,
        groups,
        has_bias,
    )
    _load(layer, weight, build.weights(node, 2) if has_bias else None)
    return build.module(node, layer, weights=1)


def _paddings(
    node: OnnxNode, size: Shape, kernel: Shape, strides: Shape, dilations: Shape
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding at the beginning and at the end of each dimension."""
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return (0,) * len(kernel), (0,) * len(kernel)
    if automatic == "NOTSET":
        pads = tuple(node.attributes.get("pads", (0,) * 2 * len(kernel)))
        return pads[: len(kernel)], pads[len(kernel) :]
    begins, ends = [], []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(((length + stride - 1) // stride - 1) * stride + (width - 1) * dilation + 1 - length, 0)
        smaller = total // 2
        begins.append(smaller if automatic == "SAME_UPPER" else total - smaller)
        ends.append(total - begins[-1])
    return tuple(begins), tuple(ends)


def _evenly_padded(
    node: OnnxNode, weight: Tensor, begins: Shape, ends: Shape, dilations: Shape
) -> tuple[Tensor, tuple[int, ...]]:
    """Return a weight and a symmetric padding that are equivalent to a weight with uneven padding.

    Both sides get the larger padding, and the kernel gets zeros on the side whose padding grew; the sums stay the same.
    """
    zeros: list[int] = []
    for begin, end, dilation in zip(begins, ends, dilations, strict=True):
        missing = abs(end - begin)
        if missing % dilation:
            raise ConversionError(f"Expected padding that dilation {dilation} divides, but got {node.describe()}")
        zeros = [*((missing // dilation, 0) if begin < end else (0, missing // dilation)), *zeros]
    padded = functional.pad(weight, zeros) if any(zeros) else weight
    return padded, tuple(max(pair) for pair in zip(begins, ends, strict=True))


def fully_connected(node: OnnxNode, build: "Builder") -> fx.Node:
    """Return a Linear layer for a Gemm, or for a MatMul whose second operand is constant."""
    weight, bias = build.weights(node, 1), None
    if weight.dim() != 2 or node.attributes.get("transA", 0):
        raise ConversionError(f"Expected a product of (N, features) with a constant matrix, but got {node.describe()}")
    if not node.attributes.get("transB", 0):
        weight = weight.T
    weight = weight * float(node.attributes.get("alpha", 1.0))
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = build.weights(node, 2).reshape(-1) * float(node.attributes.get("beta", 1.0))
        bias = bias.expand(len(weight))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _load(layer, weight, bias)
    return build.module(node, layer, weights=1)


def batch_norm(node: OnnxNode, build: "Builder") -> fx.Node:
    """Return a BatchNorm that was not folded into a convolution."""
    scale, offset, mean, variance = (build.weights(node, position) for position in (1, 2, 3, 4))
    eps = float(node.attributes.get("epsilon", 1e-5))
    norm = _norm(node, build.shape(node.inputs[0], node), len(scale), eps)
    norm.load_state_dict(
        {
            "weight": scale,
            "bias": offset,
            "running_mean": mean,
            "running_var": variance,
            "num_batches_tracked": torch.tensor(1),
        }
    )
    return build.module(node, norm, weights=1)


def per_channel(node: OnnxNode, factor: Any, offset: Any, shape: Shape) -> nn.Module:
    """Return `x · factor + offset` with per-channel constants, as a BatchNorm of mean 0 and variance 1.

    Args:
        node: The operator, for messages.
        factor: Array that broadcasts over a tensor, or None for 1.
        offset: Array that broadcasts over a tensor, or None for 0.
        shape: Shape of the tensor, the batch first.

    Raises:
        ConversionError: If the constants vary along a dimension other than the channels.
    """
    norm = _norm(node, shape, shape[1], 0.0)
    with torch.no_grad():
        for parameter, values in ((norm.weight, factor), (norm.bias, offset)):
            if values is not None:
                parameter.copy_(_of_channels(node, values, shape))
    return norm


def _of_channels(node: OnnxNode, values: Any, shape: Shape) -> Tensor:
    aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    if aligned.ndim != len(shape) or aligned.size != shape[1] or aligned.shape[1] != shape[1]:
        raise ConversionError(
            f"Expected a number, or one for each of {shape[1]} channels, but got a constant of shape {values.shape} "
            f"at {node.describe()}"
        )
    return torch.from_numpy(aligned.reshape(-1).astype(np.float32))


def _norm(node: OnnxNode, shape: Shape, channels: int, eps: float) -> nn.BatchNorm1d | nn.BatchNorm2d:
    if len(shape) not in {2, 3, 4}:
        raise ConversionError(f"Expected (N, C), (N, C, L) or (N, C, H, W), but got {shape} at {node.describe()}")
    # PyTorch does not train a BatchNorm with an epsilon of 0; this one is negligible against any variance
    eps = max(eps, torch.finfo(torch.float32).tiny)
    return (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(channels, eps=eps)


def _load(layer: nn.Conv1d | nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
