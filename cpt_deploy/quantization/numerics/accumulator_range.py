"""Limit weights so that the sums of each channel fit into int32 for any input; only needed above 64,000 inputs.

`max activation · Σ|quantized weights|` bounds every partial sum of products, with any zero point
(`precision.accumulators`); the rest of int32 is reserved for the bias.
"""

import torch
from torch import Tensor

from cpt_deploy.precision.accumulators import INT32_MOST
from cpt_deploy.quantization.numerics.affine import symmetric_quant_max, unsigned_quant_max

_EXECUTED_QUANT_MAX = symmetric_quant_max(8)
_FOR_BIAS = 2**26

SUM_LIMIT = (INT32_MOST - _FOR_BIAS) // unsigned_quant_max(8)
"""Max sum of the magnitudes of a channel's quantized weights, with activations of 8 bits."""


def can_overflow(inputs: int) -> bool:
    """Return whether a channel with this number of inputs could exceed the limit."""
    return inputs * _EXECUTED_QUANT_MAX > SUM_LIMIT


def summed_quant_max(weight: Tensor, quant_max: Tensor) -> Tensor:
    """Return for each output channel the max quantized value at which the sum of magnitudes surely keeps the limit.

    `|rint(x)| ≤ |x| + 1/2`, so `Σ|quantized weights| ≤ quant_max · Σ|w| / max|w| + inputs / 2`.

    Args:
        weight: Float32 tensor of shape (O, ...).
        quant_max: Max quantized value allowed otherwise, 0-dim or (O,), float32. Values of more than 8 bits, which
            occur only in training, are not limited.

    Returns:
        Float32 tensor of shape (O,); 0 where no value keeps the limit.
    """
    magnitudes = weight.detach().flatten(1).abs().double()
    most = magnitudes.amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    room = SUM_LIMIT - magnitudes.shape[1] / 2
    limited = torch.floor(room / (magnitudes.sum(dim=1) / most).clamp(min=1.0)).clamp(min=0.0).to(weight.dtype)
    quant_max = quant_max.to(weight.device)
    return torch.where(quant_max > _EXECUTED_QUANT_MAX, quant_max, torch.minimum(limited, quant_max))
