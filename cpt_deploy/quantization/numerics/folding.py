"""Weights, BatchNorm and bias of a layer → codes, channel scales and an int32 bias; no weight is rounded twice."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cpt_deploy.quantization.modules.layers import QuantizedLayer
from cpt_deploy.quantization.numerics.accumulator_range import SUM_LIMIT
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_levels
from cpt_deploy.quantization.numerics.saturation import worst_pair

#: Biases stay well inside int32 so that accumulators cannot overflow.
BIAS_LIMIT = 2**30
#: A bias that is stored in float32 and rounded by the runtime has to keep its integer: 24 bits, less two roundings.
FLOAT_BIAS_LIMIT = 2**22
#: A channel that only scales and shifts gets this code: a power of two, so dividing the scale by it is exact, and
#: large, so that the bias, an integer at `input scale · scale`, is fine-grained.
UNIT_CODE = 64

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]
Biases = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FoldedWeights:
    """Codes, shift, scales and bias of a weighted operation; arrays of shapes (O, ...), (O,), (O,)."""

    codes: Codes
    shift: int
    scales: Scales
    bias: Biases

    def offsets(self, input_scale: float) -> Floats:
        """Return the real values of the biases, float64 (O,), for an input of some scale."""
        step: Floats = (np.float32(input_scale) * self.scales).astype(np.float64)
        return self.bias.astype(np.float64) * step


def normalisation(norm: nn.BatchNorm1d | nn.BatchNorm2d | None, channels: int) -> tuple[Floats, Floats]:
    """Return BatchNorm in evaluation as a factor and an offset for each channel, float64 (C,)."""
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

    The codes stay those of training. The channel scale is multiplied by |γ/σ|, the codes are negated where γ < 0, and
    what is left of BatchNorm goes into the bias.

    Args:
        layer: The trained layer.
        norm: The BatchNorm that follows it, or None.
        bits: Bits of the weight codes.
        input_scale: Scale of the layer's input.
        bias_limit: Greatest magnitude of a bias code.
    """
    with torch.no_grad():
        weight = layer.channel_weight
        levels = layer.limited_levels(torch.tensor(float(symmetric_levels(bits))), weight)
        codes, scales = quantize_weight(weight, levels)
    factor, offset = normalisation(norm, codes.shape[0])
    if layer.bias is not None:
        offset = offset + _float64(layer.bias) * factor
    shift = _shift(codes, bits, layer.precision.pair_limit)
    return fold(_float64(codes), _float64(scales) / 2**shift, factor, offset, input_scale, bias_limit, shift=shift)


def _shift(codes: Tensor, bits: int, limit: int | None) -> int:
    """Return by how much codes are shifted to fill 8 bits, or as much of it as keeps pairs and sums in their limits."""
    shift = 8 - bits
    sums = float(codes.double().abs().flatten(1).sum(dim=1).amax())
    pairs = 0.0 if limit is None else float(worst_pair(codes).amax())
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
    """Fold a factor and an offset of each output channel into symmetric codes and their scales.

    Args:
        codes: Integers (O, ...).
        scales: Real step of `codes · 2^shift`, (O,).
        factor: What the channel's sum is multiplied by, (O,).
        offset: What is added to it then, (O,).
        input_scale: Scale of the input.
        bias_limit: Greatest magnitude of a bias code.
        shift: See `WeightedOperation.shift`.
    """
    per_channel = (-1, *([1] * (codes.ndim - 1)))
    codes = codes * np.where(factor < 0, -1.0, 1.0).reshape(per_channel)
    folded = (scales * np.abs(factor)).astype(np.float32)
    # A channel whose factor is (almost) zero leaves its bias no grid that int32 can hold. Such a channel is all but
    # constant: its scale is raised until the bias fits and its codes shrink accordingly, to zero in the end.
    least = (np.abs(offset) / bias_limit / input_scale).astype(np.float32)
    raised = np.maximum(folded, np.maximum(least, np.finfo(np.float32).tiny))
    shrunk = np.rint(codes * (folded / raised).astype(np.float64).reshape(per_channel))
    bias_scale = (np.float32(input_scale) * raised).astype(np.float64)
    bias_scale = np.where(bias_scale == 0, 1.0, bias_scale)
    bias = np.clip(np.rint(offset / bias_scale), -bias_limit, bias_limit)
    return FoldedWeights(shrunk.astype(np.int8), shift, raised, bias.astype(np.int32))


def channelwise(
    factor: Floats, offset: Floats, dimensions: int, input_scale: float, bias_limit: int = BIAS_LIMIT
) -> FoldedWeights:
    """Return `x · factor + offset` per channel as a depthwise convolution with one code in each kernel.

    Args:
        factor: float64 (C,).
        offset: float64 (C,).
        dimensions: Number of spatial dimensions.
        input_scale: Scale of the input.
        bias_limit: Greatest magnitude of a bias code.
    """
    channels = len(factor)
    codes = np.full((channels, 1, *([1] * dimensions)), float(UNIT_CODE))
    return fold(codes, np.full(channels, 1.0 / UNIT_CODE), factor, offset, input_scale, bias_limit)


def _float64(tensor: Tensor | None) -> Floats:
    assert tensor is not None
    array: Floats = tensor.detach().cpu().to(torch.float64).numpy()
    return array
