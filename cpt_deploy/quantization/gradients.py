"""Quantization of the gradient that enters a layer's backward pass: per tensor, unbiased stochastic rounding."""

from typing import Any

import torch
from torch import Tensor

from cpt_deploy.quantization.affine import including_zero
from cpt_deploy.quantization.kernels import kernels_on
from cpt_deploy.quantization.kernels.layout import dense


def quantize_gradient(gradient: Tensor, levels: Tensor, seed: int) -> Tensor:
    """Round a gradient stochastically to a grid of `levels + 1` codes.

    The grid contains 0 and its step is `range / (levels − 1)`: one code is left free so that rounding down at the
    lower end and up at the upper end both stay on the grid. Nothing is clamped, so the rounding is unbiased
    everywhere, and exact zeros stay zero. A step is relative to the tensor's own range, however small.

    Args:
        gradient: Float32 tensor of any shape; of another type, it is rounded as float32.
        levels: Greatest code, 0-dim float32.
        seed: Seed of the noise.

    Returns:
        The rounded gradient; NaN and infinite inputs give NaN, never a number.
    """
    gradient, kernels = dense(gradient.float()), kernels_on(gradient.device)
    step = gradient_step(*including_zero(*kernels.range(gradient)), levels)
    return kernels.round_gradient(gradient, step, seed)


def gradient_step(low: Tensor, high: Tensor, levels: Tensor) -> Tensor:
    """Return the step of a gradient's grid, 0-dim: `range / (levels − 1)`, or 1 if the range is empty.

    Args:
        low: Least value of the gradient and 0, 0-dim float32.
        high: Greatest value of the gradient and 0, 0-dim float32.
        levels: Greatest code, 0-dim float32.
    """
    width = (high - low) / (levels - 1.0)
    return torch.where(width == 0, torch.ones_like(width), width)


class _QuantizeGradient(torch.autograd.Function):
    """The identity, whose gradient is quantized."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, seed: int) -> Tensor:
        ctx.levels, ctx.seed = levels, seed
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return quantize_gradient(grad_outputs[0], ctx.levels, ctx.seed), None, None


def with_quantized_gradient(x: Tensor, levels: Tensor, seed: int) -> Tensor:
    """Return `x`; the gradient that comes back through it is quantized by `quantize_gradient`."""
    result: Tensor = _QuantizeGradient.apply(x, levels, seed)
    return result
