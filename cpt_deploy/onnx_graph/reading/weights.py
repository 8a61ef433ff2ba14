"""Quantize the weights of an ONNX layer: per channel, symmetric, in a range in which no sum can saturate."""

import numpy as np
import torch

from cpt_deploy.quantization.numerics.accumulator_range import can_overflow, summed_quant_max
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_quant_max
from cpt_deploy.quantization.numerics.folding import Floats, FoldedWeights, fold
from cpt_deploy.quantization.numerics.saturation import portable_quant_max, saturation_limit

BITS = 8


def quantized_layer(
    weight: Floats, factor: Floats, offset: Floats, input_scale: float, *, portable: bool
) -> FoldedWeights:
    """Return quantized weights and bias of a layer with what it absorbed.

    Args:
        weight: Float weights, output channels first: (O, ...).
        factor: Factor of each output channel, (O,).
        offset: What is added after it, (O,).
        input_scale: Scale of the quantized input.
        portable: Whether no pair of products may exceed 16 bits.
    """
    real = torch.from_numpy(weight.astype(np.float32))
    quant_max = torch.tensor(float(symmetric_quant_max(BITS)))
    if portable:
        quant_max = portable_quant_max(real, quant_max, saturation_limit(BITS))
    if can_overflow(real[0].numel()):
        quant_max = summed_quant_max(real, quant_max)
    codes, scales = quantize_weight(real, quant_max)
    return fold(codes.double().numpy(), scales.double().numpy(), factor, offset, input_scale)
