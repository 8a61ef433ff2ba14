"""Affine quantization as ONNX QuantizeLinear and DequantizeLinear define it: pure functions on tensors.

`codes = saturate(rint(x / scale) + zero_point)`, `x = (codes - zero_point) · scale`, rint rounds half to even.
The max quantized value is a tensor so that a change of bits changes data, not compiled code.
"""

from typing import Any

import torch
from torch import Tensor


def unsigned_quant_max(bits: int) -> int:
    """Return quant_max of an unsigned tensor of `bits` bits, `2^bits − 1`."""
    return int(2**bits - 1)


def symmetric_quant_max(bits: int) -> int:
    """Return quant_max of a symmetric signed tensor of `bits` bits, `2^(bits−1) − 1`."""
    return int(2 ** (bits - 1) - 1)


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the min and max of `x` and 0, as 0-dim tensors.

    Zero belongs to every range so that the zero point is an integer and real zero (padding, ReLU) is exact.
    """
    return including_zero(*torch.aminmax(in_memory_order(x.detach())))


def including_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest range that contains the given range and 0; NaN stays NaN."""
    return low.clamp(max=0.0), high.clamp(min=0.0)


def in_memory_order(x: Tensor) -> Tensor:
    """Return a contiguous view of a channels-last tensor, so that full reductions do not copy it."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return x


def affine_parameters(low: Tensor, high: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a range that contains 0.

    Args:
        low: Min real value, 0-dim float32, at most 0.
        high: Max real value, 0-dim float32, at least 0.
        quant_max: Max quantized value, 0-dim float32.

    Returns:
        The scale and the zero point, 0-dim float32; the zero point is an integer in [0, quant_max]. An empty range has
        scale 1.
    """
    width = (high - low) / quant_max
    scale = torch.where(width == 0, torch.ones_like(width), width)
    return scale, torch.round(-low / scale).clamp(min=torch.zeros_like(quant_max), max=quant_max)


def symmetric_parameters(low: Tensor, high: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of symmetric signed quantization of a range.

    At 8 bits the max magnitude maps to 127; values below −127 saturate at −128, as in QuantizeLinear. Relative to the
    min quantized value, the convention of this module, the zero point is 128.

    Args:
        low: Min real value, 0-dim float32, at most 0.
        high: Max real value, 0-dim float32, at least 0.
        quant_max: Number of quantized values minus 1, odd, 0-dim float32.

    Returns:
        The scale and the zero point, 0-dim float32. An empty range has scale 1.
    """
    zero_point = (quant_max + 1) / 2
    width = torch.maximum(high, -low) / (zero_point - 1)
    return torch.where(width == 0, torch.ones_like(width), width), zero_point


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_max: Tensor) -> Tensor:
    """Return the quantized values of `x`, integers in [0, quant_max] as float32."""
    return torch.round(x / scale).add_(zero_point).clamp_(min=torch.zeros_like(quant_max), max=quant_max)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the real values of quantized values."""
    return (codes - zero_point) * scale


def _scaled(codes: Tensor, scale: Tensor) -> Tensor:
    """Return `codes · scale`, in place unless compiling.

    In torch 2.11 a compiled function that returns a tensor changed in place gets a gradient of zeros.
    """
    return codes * scale if torch.compiler.is_compiling() else codes.mul_(scale)


class _FakeQuantizeAffine(torch.autograd.Function):
    """Quantize and dequantize with the straight-through gradient (STE)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_max: Tensor) -> Tensor:
        codes = torch.div(x, scale).round_().clamp_(min=-zero_point, max=quant_max - zero_point)
        return _scaled(codes, scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return grad_outputs[0], None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_max: Tensor) -> Tensor:
    """Return `dequantize(quantize(x))` with the straight-through gradient.

    No gradient is masked: in training the range is the tensor's own, so nothing is clipped.

    Args:
        x: Float32 tensor of any shape.
        scale: 0-dim float32.
        zero_point: 0-dim float32 holding an integer.
        quant_max: Max quantized value, 0-dim float32.
    """
    result: Tensor = _FakeQuantizeAffine.apply(x, scale, zero_point, quant_max)
    return result


def channel_scales(weight: Tensor, quant_max: Tensor) -> Tensor:
    """Return the symmetric scale of each output channel, `max|w| / quant_max`; a channel of zeros has scale 1.

    Args:
        weight: Float32 tensor of shape (O, ...).
        quant_max: Max quantized value, float32, 0-dim or per channel (O,).

    Returns:
        Float32 tensor of shape (O,).
    """
    flat = weight.detach().flatten(1)
    low, high = torch.aminmax(flat, dim=1)
    scale = torch.maximum(high, -low) / quant_max
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *([1] * (weight.dim() - 1)))


def quantize_weight(weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight's quantized values, integers in [−quant_max, quant_max] as float32, and its channel scales (O,).

    Args:
        weight: Float32 tensor of shape (O, ...).
        quant_max: Max quantized value, float32, 0-dim or per channel (O,).
    """
    scale = channel_scales(weight, quant_max)
    most = _per_channel(quant_max, weight) if quant_max.dim() else quant_max
    codes = torch.round(weight.detach() / _per_channel(scale, weight)).clamp_(min=-most, max=most)
    return codes, scale


class _FakeQuantizeWeight(torch.autograd.Function):
    """Quantize and dequantize a weight per output channel with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quant_max: Tensor) -> Tensor:
        codes, scale = quantize_weight(weight, quant_max)
        return _scaled(codes, _per_channel(scale, weight))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def fake_quantize_weight(weight: Tensor, quant_max: Tensor) -> Tensor:
    """Return a weight fake-quantized symmetrically per channel, with the straight-through gradient."""
    result: Tensor = _FakeQuantizeWeight.apply(weight, quant_max)
    return result
