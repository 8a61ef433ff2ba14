"""Quantize the output gradient of a layer in its backward pass: per tensor, with unbiased stochastic rounding."""

from typing import Any

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import kernels_on
from cpt_deploy.quantization.kernels.layout import dense
from cpt_deploy.quantization.modules.sbm import round_gradient
from cpt_deploy.quantization.state.config import Scheme


def quantize_gradient(gradient: Tensor, quant_max: Tensor, seed: int | Tensor) -> Tensor:
    """Round a gradient stochastically to one of `quant_max + 1` values.

    The values are multiples of the step `range / (quant_max − 1)`, including 0: one value is left free so that rounding
    down at the min and up at the max both stay within them. Nothing is clamped, so the rounding is unbiased
    everywhere, and exact zeros stay zero. The step is relative to the tensor's own range, however small.

    Args:
        gradient: Float32 tensor of any shape; other types are converted to float32.
        quant_max: Max quantized value, 0-dim float32.
        seed: Seed of the stochastic-rounding noise, an integer or 0-dim int64 on the gradient's device.

    Returns:
        The rounded gradient; NaN and infinite inputs give NaN, never a number.
    """
    gradient, kernels = dense(gradient.float()), kernels_on(gradient.device)
    step = kernels.gradient_step(*kernels.range(gradient), quant_max)
    if isinstance(seed, int):
        seed = torch.full((), seed & 0xFFFFFFFF, dtype=torch.int64, device=gradient.device)
    return kernels.round_gradient(gradient, step, seed)


class _QuantizeGradient(torch.autograd.Function):
    """The identity with a quantized gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quant_max: Tensor, seed: int | Tensor, scheme: Scheme) -> Tensor:
        ctx.quant_max, ctx.seed, ctx.scheme = quant_max, seed, scheme
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        quantize = round_gradient if ctx.scheme == "sbm" else quantize_gradient
        return quantize(grad_outputs[0], ctx.quant_max, ctx.seed), None, None, None


def with_quantized_gradient(x: Tensor, quant_max: Tensor, seed: int | Tensor, scheme: Scheme = "integers") -> Tensor:
    """Return `x`, with its gradient quantized in the backward pass: by `quantize_gradient`, or as the scheme does."""
    result: Tensor = _QuantizeGradient.apply(x, quant_max, seed, scheme)
    return result
