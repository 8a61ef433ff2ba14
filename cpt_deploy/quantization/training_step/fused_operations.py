"""Autograd operations of the fused training step, one for each integer operation of the frozen network.

A fused operation maps quantized values to quantized values: a layer with its BatchNorm and ReLU, a sum with its ReLU,
or a quantizer alone. It computes the same as its modules one by one, and saves for backward one byte per input value
and the layer's sums, from which the ReLU's mask follows.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpt_deploy.quantization.kernels import Clamp, Kernels, QuantizationParameters
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer


class QuantizedValues(NamedTuple):
    """A quantized tensor between two fused operations.

    Args:
        surrogate: Represents the real tensor in autograd: same shape, no memory, dtype of the gradients.
        codes: Quantized values, uint8.
        qparams: Their scale and zero point.
    """

    surrogate: Tensor
    codes: Tensor
    qparams: QuantizationParameters


@dataclass(frozen=True, slots=True)
class Engine:
    """Backend and settings of fused operations.

    Args:
        kernels: Backend.
        gradient_dtype: Dtype of gradients between fused operations, and of backward products.
        replayable: Whether the same operations run at all bits, so that one CUDA-graph step serves them all.
    """

    kernels: Kernels
    gradient_dtype: torch.dtype
    replayable: bool = False


def encode(x: Tensor, qparams: QuantizationParameters, engine: Engine) -> QuantizedValues:
    """Quantize a tensor, in float32; the gradient passes straight through."""
    surrogate, codes = _Encode.apply(x.float(), qparams, engine)
    return QuantizedValues(surrogate, codes, qparams)


def decode(x: QuantizedValues, engine: Engine) -> Tensor:
    """Dequantize to a float32 tensor; the gradient passes through."""
    result: Tensor = _Decode.apply(x.surrogate, x, engine)
    return result


def requantize(x: QuantizedValues, qparams: QuantizationParameters, engine: Engine) -> QuantizedValues:
    """Requantize to other quantization parameters; the gradient passes straight through."""
    return QuantizedValues(x.surrogate, engine.kernels.requantize(x.codes, x.qparams, qparams), qparams)


def surrogate_of(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor that represents a quantized one in autograd: same shape, no memory."""
    return torch.empty((), dtype=dtype, device=codes.device).expand(codes.shape)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qparams: QuantizationParameters, engine: Engine) -> tuple[Tensor, Tensor]:
        codes = engine.kernels.quantize(x, qparams)
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)  # codes have no gradient, not one of zeros
        return surrogate_of(codes, engine.gradient_dtype), codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None, None]:
        return gradient.float(), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, x: QuantizedValues, engine: Engine) -> Tensor:
        ctx.dtype = engine.gradient_dtype
        return engine.kernels.dequantize(x.codes, x.qparams)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype), None, None


# --- a sum --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FusedAdd:
    """A sum of two quantized tensors of one shape, its clamp, and the quantizer of its output."""

    clamp: Clamp
    quantizer: ActivationQuantizer

    def __call__(self, a: QuantizedValues, b: QuantizedValues, engine: Engine) -> QuantizedValues:
        """Return the clamped and quantized sum."""
        surrogate, codes = _AddFunction.apply(a.surrogate, b.surrogate, a, b, self, engine)
        return QuantizedValues(surrogate, codes, self.quantizer.qparams())


class _AddFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        surrogate_a: Tensor,
        surrogate_b: Tensor,
        a: QuantizedValues,
        b: QuantizedValues,
        fused: FusedAdd,
        engine: Engine,
    ) -> tuple[Tensor, Tensor]:
        kernels, qparams_each = engine.kernels, (a.qparams, b.qparams)
        fused.quantizer.take(*kernels.add_range(a.codes, b.codes, qparams_each, fused.clamp), kernels)
        codes, passed = kernels.add_quantize(a.codes, b.codes, qparams_each, fused.clamp, fused.quantizer.qparams())
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)  # codes have no gradient, not one of zeros
        ctx.kernels, ctx.clamps = kernels, fused.clamp != Clamp()
        ctx.layout = codes.stride()
        if ctx.clamps:
            ctx.save_for_backward(passed)
        return surrogate_of(codes, engine.gradient_dtype), codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        if ctx.clamps:
            ordered = torch.empty_strided(gradient.shape, ctx.layout, dtype=gradient.dtype, device=gradient.device)
            ordered = gradient if gradient.stride() == ctx.layout else ordered.copy_(gradient)
            gradient = ctx.kernels.mask(ordered, *ctx.saved_tensors)
        return gradient, gradient, None, None, None, None
