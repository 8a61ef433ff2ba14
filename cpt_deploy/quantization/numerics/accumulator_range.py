"""The range of codes at which a channel's sums fit into int32 whatever its input; only layers of 65,000 inputs need it.

`greatest activation · Σ|codes|` bounds every partial sum of products, with any zero point
(`precision.accumulators`); the bias has what is left.
"""

import torch
from torch import Tensor

from cpt_deploy.precision.accumulators import INT32_MOST
from cpt_deploy.quantization.numerics.affine import symmetric_levels, unsigned_levels

_EXECUTED_LEVELS = symmetric_levels(8)
_FOR_BIAS = 2**26

SUM_LIMIT = (INT32_MOST - _FOR_BIAS) // unsigned_levels(8)
"""What the magnitudes of a channel's executed codes may add up to, beside activations of 8 bits."""


def can_overflow(inputs: int) -> bool:
    """Return whether so many codes of a channel could add up to more than the limit."""
    return inputs * _EXECUTED_LEVELS > SUM_LIMIT


def summed_levels(weight: Tensor, levels: Tensor) -> Tensor:
    """Return the greatest code of each output channel at which its codes' magnitudes keep the limit for certain.

    `|rint(x)| ≤ |x| + 1/2`, so `Σ|codes| ≤ levels · Σ|w| / max|w| + inputs / 2`.

    Args:
        weight: Float32 tensor of shape (O, ...).
        levels: Greatest code that is allowed otherwise, 0-dim or (O,), float32. More than 8 bits are only trained with
            and stay as they are.

    Returns:
        Float32 tensor of shape (O,); 0 where there is no such code.
    """
    magnitudes = weight.detach().flatten(1).abs().double()
    most = magnitudes.amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    room = SUM_LIMIT - magnitudes.shape[1] / 2
    limited = torch.floor(room / (magnitudes.sum(dim=1) / most).clamp(min=1.0)).clamp(min=0.0).to(weight.dtype)
    levels = levels.to(weight.device)
    return torch.where(levels > _EXECUTED_LEVELS, levels, torch.minimum(limited, levels))
