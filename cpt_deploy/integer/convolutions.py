"""Build convolutions, also for BatchNorm alone, constants and average pooling, which are executed as convolutions."""

from typing import Any

import numpy as np
from torch import nn

from cpt_deploy.integer.operations import Convolution
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import FoldedWeights
from cpt_deploy.quantization.graph.operator_kinds import pair


def fields_of(folded: FoldedWeights) -> dict[str, Any]:
    """Return the fields of a weighted operation that folding determines."""
    return {"codes": folded.codes, "shift": folded.shift, "scales": folded.scales, "bias": folded.bias}


def has_positions(tensor: QuantizedTensor) -> bool:
    """Return whether a tensor is (N, C, L) or (N, C, H, W), so that a convolution can run on it."""
    return len(tensor.shape) in (2, 3)


def pads_of(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Return a layer's padding in ONNX order: begins of all dimensions, then ends."""
    if layer.padding == "valid":
        return (0,) * 2 * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        begins = [t // 2 for t in total]
        return (*begins, *(t - b for t, b in zip(total, begins, strict=True)))
    return (*(int(p) for p in layer.padding),) * 2


def depthwise(
    folded: FoldedWeights,
    source: QuantizedTensor,
    output: QuantizedTensor,
    name: str,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> Convolution:
    """Return a depthwise convolution."""
    return Convolution(
        inputs=(source.name,),
        output=output.name,
        **fields_of(folded),
        bits=8,
        source=name,
        strides=strides,
        pads=pads,
        dilations=(1,) * len(strides),
        groups=source.channels,
    )


def average(module: nn.Module, source: QuantizedTensor, output: QuantizedTensor) -> Convolution:
    """Write average pooling as a depthwise convolution with all weights 1: its sums are exact integers."""
    kernel, strides, padding, divisor = _average_window(module, source, output)
    channels = source.channels
    codes = np.ones((channels, 1, *kernel), dtype=np.int8)
    scales = np.full(channels, 1.0 / divisor, dtype=np.float32)
    folded = FoldedWeights(codes, 0, scales, np.zeros(channels, dtype=np.int32))
    return depthwise(folded, source, output, type(module).__name__, strides, padding)


def _average_window(
    module: nn.Module, source: QuantizedTensor, output: QuantizedTensor
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], float]:
    """Return kernel, strides, padding and divisor."""
    if isinstance(module, nn.AvgPool2d):
        kernel, strides, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        return kernel, strides, padding * 2, float(module.divisor_override or np.prod(kernel))
    # adaptive pooling to a size that divides the input's
    sizes = zip(source.shape[1:], output.shape[1:], strict=True)
    kernel = tuple(before // after for before, after in sizes)  # type: ignore[operator]  # neither is free
    return kernel, kernel, (0, 0, 0, 0), float(np.prod(kernel))
