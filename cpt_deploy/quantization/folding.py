"""Fold a layer's weights, bias and BatchNorm into int8 weights, channel scales and an int32 bias.

No weight is rounded twice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpt_deploy.quantization.modules.layers import QuantizedLayer
from cpt_deploy.quantization.numerics.accumulator_range import SUM_LIMIT
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_quant_max
from cpt_deploy.quantization.numerics.saturation import worst_pair_sum

#: Max magnitude of a bias, well inside int32 so that accumulators cannot overflow.
BIAS_LIMIT = 2**30
#: A bias stored in float32 and rounded by the runtime has to yield the same integer: 24 bits, less two roundings.
FLOAT_BIAS_LIMIT = 2**22
#: Quantized weight of a channel that only scales and shifts: a power of two, so dividing the scale by it is exact, and
#: large, so that the bias, an integer at scale `input scale · scale`, is fine-grained.
UNIT_CODE = 64

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]
Biases = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FoldedWeights:
    """Quantized weights (O, ...), shift, scales (O,) and bias (O,) of a weighted operation."""

    codes: Codes
    shift: int
    scales: Scales
    bias: Biases

    def offsets(self, input_scale: float) -> Floats:
        """Return the real values of the biases, float64 (O,), for an input of the given scale."""
        step: Floats = (np.float32(input_scale) * self.scales).astype(np.float64)
        return self.bias.astype(np.float64) * step


def normalisation(norm: nn.BatchNorm1d | nn.BatchNorm2d | None, channels: int) -> tuple[Floats, Floats]:
    """Return BatchNorm in evaluation mode as a factor and an offset per channel, float64 (C,)."""
    if norm is None:
        return np.ones(channels), np.zeros(channels)
    mean, variance = _float64(norm.running_mean), _float64(norm.running_var)
    factor = 1.0 / np.sqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * _float64(norm.weight)
    offset = -mean * factor
    if norm.bias is not None:
        offset = offset + _float64(norm.bias)
    return factor, offset


def fold_layer(
    layer: QuantizedLayer,
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
    bits: int,
    input_scale: float,
    bias_limit: int = BIAS_LIMIT,
) -> FoldedWeights:
    """Fold a layer and the BatchNorm after it.

    The quantized weights stay those of training, negated where γ < 0. The channel scale is multiplied by |γ/σ|, and
    the shift of BatchNorm goes into the bias.

    Args:
        layer: The trained layer.
        norm: The BatchNorm that follows it, or None.
        bits: Bits of the quantized weights.
        input_scale: Scale of the layer's input.
        bias_limit: Max magnitude of a quantized bias.
    """
    with torch.no_grad():
        weight = layer.channel_weight
        quant_max = layer.limited_quant_max(torch.tensor(float(symmetric_quant_max(bits))), weight)
        codes, scales = quantize_weight(weight, quant_max)
    factor, offset = normalisation(norm, codes.shape[0])
    if layer.bias is not None:
        offset = offset + _float64(layer.bias) * factor
    shift = executed_shift(codes, bits, layer.precision.saturation_limit)
    return fold(_float64(codes), _float64(scales) / 2**shift, factor, offset, input_scale, bias_limit, shift=shift)


def executed_shift(codes: Tensor, bits: int, limit: int | None) -> int:
    """Return the left shift of the quantized weights: to 8 bits, or less if pairs or sums would exceed their limit."""
    shift = 8 - bits
    sums = float(codes.double().abs().flatten(1).sum(dim=1).amax())
    pairs = 0.0 if limit is None else float(worst_pair_sum(codes).amax())
    while shift and (sums * 2**shift > SUM_LIMIT or (limit is not None and pairs * 2**shift > limit)):
        shift -= 1
    return shift


def fold(
    codes: Floats,
    scales: Floats,
    factor: Floats,
    offset: Floats,
    input_scale: float,
    bias_limit: int = BIAS_LIMIT,
    *,
    shift: int = 0,
) -> FoldedWeights:
    """Fold a factor and an offset of each output channel into symmetric quantized weights and their scales.

    Args:
        codes: Quantized weights, integers (O, ...).
        scales: Scale of `codes · 2^shift`, (O,).
        factor: Factor of the channel's sum, (O,).
        offset: Offset added after it, (O,).
        input_scale: Scale of the input.
        bias_limit: Max magnitude of a quantized bias.
        shift: See `WeightedOperation.shift`.
    """
    per_channel = (-1, *([1] * (codes.ndim - 1)))
    codes = codes * np.where(factor < 0, -1.0, 1.0).reshape(per_channel)
    folded = (scales * np.abs(factor)).astype(np.float32)
    # If a channel's factor is (almost) zero, its bias does not fit into int32 at the resulting scale. Such a channel is
    # almost constant: its scale is raised until the bias fits, and its quantized weights shrink accordingly, down to 0.
    lowest = (np.abs(offset) / bias_limit / input_scale).astype(np.float32)
    raised = np.maximum(folded, np.maximum(lowest, np.finfo(np.float32).tiny))
    shrunk = np.rint(codes * (folded / raised).astype(np.float64).reshape(per_channel))
    bias_scale = (np.float32(input_scale) * raised).astype(np.float64)
    bias_scale = np.where(bias_scale == 0, 1.0, bias_scale)
    bias = np.clip(np.rint(offset / bias_scale), -bias_limit, bias_limit)
    return FoldedWeights(shrunk.astype(np.int8), shift, raised, bias.astype(np.int32))


def channelwise(
    factor: Floats, offset: Floats, dimensions: int, input_scale: float, bias_limit: int = BIAS_LIMIT
) -> FoldedWeights:
    """Return `x · factor + offset` per channel as a depthwise convolution with one weight per kernel.

    Args:
        factor: float64 (C,).
        offset: float64 (C,).
        dimensions: Number of spatial dimensions.
        input_scale: Scale of the input.
        bias_limit: Max magnitude of a quantized bias.
    """
    channels = len(factor)
    codes = np.full((channels, 1, *([1] * dimensions)), float(UNIT_CODE))
    return fold(codes, np.full(channels, 1.0 / UNIT_CODE), factor, offset, input_scale, bias_limit)


def _float64(tensor: Tensor | None) -> Floats:
    assert tensor is not None
    array: Floats = tensor.detach().cpu().to(torch.float64).numpy()
    return array
