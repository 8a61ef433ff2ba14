"""The arithmetic of onnxruntime's integer kernels, bit for bit, on integers that are stored in float32.

The docstring of each function states the float32 operations of its kernel, which it performs in the same order.
Constants are Python floats that float32 represents exactly, so that a trace of these functions has them as numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cpt_deploy.integer.operations import Convolution, MaxPool, Pad, ReadPixels
from cpt_deploy.integer.tensors import QuantizedTensor


def quantize(x: Tensor, tensor: QuantizedTensor) -> Tensor:
    """`rint(x / s) + z` with true division, as QuantizeLinear; x · (1 / s) would differ in one value of a million."""
    return _saturate(torch.round(x / tensor.scale) + tensor.zero_point, tensor)


def read_pixels(x: Tensor, table: Tensor, operation: ReadPixels) -> Tensor:
    """The table's entry of each byte, (N, C, H, W)."""
    moved = x.permute(0, 3, 1, 2) if operation.channels_last else x
    ordered = moved.flip(1) if operation.reversed else moved
    channels = torch.arange(len(table), device=x.device).reshape(-1, 1, 1)
    return table.to(x.device)[channels, ordered.to(torch.int64)].to(torch.float32)


def dequantize(codes: Tensor, tensor: QuantizedTensor) -> Tensor:
    """`(codes − z) · s`."""
    return (codes - tensor.zero_point) * tensor.scale


def requantize(accumulator: Tensor, multiplier: Tensor | float, output: QuantizedTensor) -> Tensor:
    """`rint(clamp(f32(acc) · m)) + z`: clamp in float, round half to even, add the zero point."""
    low, high = output.quant_min - output.zero_point, output.quant_max - output.zero_point
    scaled = accumulator.to(torch.float32) * multiplier
    return torch.round(scaled.clamp_(low, high)).add_(output.zero_point)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, operation: Convolution) -> Tensor:
    """Return the exact sums of a convolution of integers minus their zero point, in the dtype of the arguments."""
    dimensions = len(operation.strides)
    begins, ends = operation.pads[:dimensions], operation.pads[dimensions:]
    padding: tuple[int, ...] = begins
    if begins != ends:
        pairs = [p for begin, end in zip(reversed(begins), reversed(ends), strict=True) for p in (begin, end)]
        x, padding = functional.pad(x, pairs), (0,) * dimensions
    convolution = functional.conv2d if dimensions == 2 else functional.conv1d
    result: Tensor = convolution(x, weight, bias, operation.strides, padding, operation.dilations, operation.groups)
    return result


def add(inputs: Sequence[Tensor], sources: Sequence[QuantizedTensor], output: QuantizedTensor) -> Tensor:
    """`rint(fma(a, r_a, fma(b, r_b, f32(z_c − fma(z_a, r_a, f32(r_b·z_b))))))`, r = s / s_c."""
    (a, b), (first, second) = inputs, sources
    ratio_a, ratio_b = _f32(first.scale) / _f32(output.scale), _f32(second.scale) / _f32(output.scale)
    # the product of two float32 is exact in float64, so one rounding is left, as in fma
    shift = _f32(float(first.zero_point) * float(ratio_a) + float(ratio_b * _f32(second.zero_point)))
    fixed = float(_f32(output.zero_point) - shift)
    inner = (b.to(torch.float64) * float(ratio_b) + fixed).to(torch.float32)
    total = (a.to(torch.float64) * float(ratio_a) + inner.to(torch.float64)).to(torch.float32)
    return _saturate(torch.round(total), output)


def multiply(inputs: Sequence[Tensor], sources: Sequence[QuantizedTensor], output: QuantizedTensor) -> Tensor:
    """`rint(f32(f32((a − z_a)·(b − z_b)·m) + z_c))`, `m = f32(f32(s_a·s_b) / s_c)`; the integer product is exact.

    The zero point is added before rounding, which determines how ties round.
    """
    (a, b), (first, second) = inputs, sources
    product = (a - first.zero_point) * (b - second.zero_point)
    multiplier = float((_f32(first.scale) * _f32(second.scale)) / _f32(output.scale))
    return _saturate(torch.round((product * multiplier).add_(output.zero_point)), output)


def global_average(x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    """`rint(acc · f32(s_x / f32(s_y·S))) + z_y` with `acc = Σx − S·z_x` over S positions."""
    accumulator = x.to(torch.float64).sum(dim=(2, 3), keepdim=True)
    if None in source.shape:
        free = x.shape[2] * x.shape[3]
        scales = (torch.tensor(tensor.scale, dtype=torch.float32, device=x.device) for tensor in (source, output))
        scale, made = scales
        multiplier = scale / (made * torch.scalar_tensor(free, dtype=torch.float32, device=x.device))
        return requantize(accumulator - free * source.zero_point, multiplier, output)
    positions = int(np.prod(source.shape[1:]))  # type: ignore[arg-type]
    accumulator -= positions * source.zero_point
    return requantize(accumulator, float(_f32(source.scale) / (_f32(output.scale) * _f32(positions))), output)


def rescale(x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    """Requantize as a table of 256 entries does: dequantize and quantize, in float32."""
    if (source.scale, source.zero_point, source.bits) == (output.scale, output.zero_point, output.bits):
        return x
    return quantize(dequantize(x, source), output)


def pad(x: Tensor, operation: Pad, zero_point: int) -> Tensor:
    """Pad quantized values, with the zero point or with values of the tensor."""
    dimensions = len(operation.pads) // 2
    pairs = list(zip(operation.pads[:dimensions], operation.pads[dimensions:], strict=True))
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    allocation = [width for pair in reversed(pairs) for width in pair]
    if operation.mode == "constant":
        return functional.pad(x, allocation, value=float(zero_point))
    return functional.pad(x, allocation, operation.mode)


def max_pool(x: Tensor, operation: MaxPool) -> Tensor:
    """Return the maximum of each window."""
    dimensions = len(operation.kernel)
    pool = functional.max_pool2d if dimensions == 2 else functional.max_pool1d
    padding = operation.pads[:dimensions]
    result: Tensor = pool(
        x, operation.kernel, operation.strides, padding, operation.dilations, ceil_mode=operation.ceil
    )
    return result


def _saturate(codes: Tensor, tensor: QuantizedTensor) -> Tensor:
    return codes.clamp_(tensor.quant_min, tensor.quant_max)


def _f32(value: float) -> np.float32:
    return np.float32(value)
