"""Quantize the weights of an ONNX layer: per channel, symmetric, in a range in which no sum can saturate."""

import numpy as np
import torch

from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import (
    BIAS_LIMIT,
    FLOAT_BIAS_LIMIT,
    Floats,
    FoldedWeights,
    executed_shift,
    fold,
)
from cpt_deploy.quantization.numerics.accumulator_range import can_overflow, summed_quant_max
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_quant_max
from cpt_deploy.quantization.numerics.saturation import portable_quant_max, saturation_limit


def quantized_layer(
    weight: Floats,
    factor: Floats,
    offset: Floats,
    source: QuantizedTensor,
    *,
    bits: int,
    means: Floats | None,
    portable: bool,
) -> FoldedWeights:
    """Return quantized weights and bias of a layer with what it absorbed.

    Args:
        weight: Float weights, output channels first: (O, ...).
        factor: Factor of each output channel, (O,).
        offset: What is added after it, (O,).
        source: The quantized input.
        bits: Bits of the weights.
        means: Mean of each input channel, (I,): the bias makes up for what rounding the weights changes on average.
        portable: Whether no pair of products may exceed 16 bits.
    """
    real = torch.from_numpy(weight.astype(np.float32))
    quant_max = torch.tensor(float(symmetric_quant_max(bits)))
    limit = saturation_limit(source.bits) if portable and not source.signed else None
    if limit is not None:
        quant_max = portable_quant_max(real, quant_max, limit)
    if can_overflow(real[0].numel()):
        quant_max = summed_quant_max(real, quant_max)
    codes, scales = quantize_weight(real, quant_max)
    shift = executed_shift(codes, bits, limit)
    rounded, steps = codes.double().numpy(), scales.double().numpy()
    if means is not None:
        per_channel = (-1, *[1] * (weight.ndim - 1))
        change = (rounded * steps.reshape(per_channel) - weight).reshape(*weight.shape[:2], -1).sum(axis=2)
        offset = offset - factor * _products(change, means)
    most = FLOAT_BIAS_LIMIT if source.signed else BIAS_LIMIT
    return fold(rounded, steps / 2**shift, factor, offset, source.scale, most, shift=shift)


def _products(change: Floats, means: Floats) -> Floats:
    """Return `change · means`, (O,), for changes (O, I/g) of weights of g groups."""
    groups = len(means) // change.shape[1]
    grouped = change.reshape(groups, -1, change.shape[1])
    result: Floats = np.einsum("goi,gi->go", grouped, means.reshape(groups, -1)).reshape(-1)
    return result
