"""Affine quantization with a real-valued zero point, as the CPT paper's published code has it: pure functions.

`codes = clamp(rint((x − low) / scale + noise), 0, quant_max)`, `x = codes · scale + low`: the zero point is the min of
the range itself, so real zero is in general no quantized value, and no integer kernel executes it. The scheme is SBM
(Banner et al., "Scalable Methods for 8-bit Training of Neural Networks", NeurIPS 2018), on which Fu et al. (ICLR 2021)
train.
"""

from typing import Any

import torch
from torch import Tensor

#: Min scale in the published code: a range below `quant_max` times this has fewer quantized values.
MIN_SCALE = 1e-8


def channel_ranges(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the min and max of each output channel of a weight (O, ...), both (O, 1, ...), which broadcasts to it."""
    shape = (-1, *[1] * (weight.dim() - 1))
    low, high = torch.aminmax(weight.detach().flatten(1), dim=1)
    return low.view(shape), high.view(shape)


def round_to_range(x: Tensor, low: Tensor, high: Tensor, quant_max: Tensor, noise: Tensor | None = None) -> Tensor:
    """Round `x` to the nearest of `quant_max + 1` values, evenly spaced from `low` to `high`; clamp values outside.

    Args:
        x: Float tensor of any shape.
        low: Min of the range, 0-dim, or of a shape that broadcasts to `x`.
        high: Max of the range, likewise.
        quant_max: Max quantized value, 0-dim float32.
        noise: Added before rounding, in steps, same shape as `x`; uniform in ±½ it makes rounding unbiased.

    Returns:
        The rounded values, same shape; NaN in a range that is not finite.
    """
    scale = ((high - low) / quant_max).clamp(min=MIN_SCALE)
    codes = (x - low).div_(scale)
    if noise is not None:
        codes.add_(noise)
    return codes.clamp_(min=torch.zeros_like(quant_max), max=quant_max).round_() * scale + low


class _FakeQuantize(torch.autograd.Function):
    """Round to a range with the straight-through gradient (STE)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
        return round_to_range(x, low, high, quant_max)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return grad_outputs[0], None, None, None


def fake_quantize_in_range(x: Tensor, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
    """Return `round_to_range(x)` with the straight-through gradient, which nothing masks."""
    result: Tensor = _FakeQuantize.apply(x, low, high, quant_max)
    return result
