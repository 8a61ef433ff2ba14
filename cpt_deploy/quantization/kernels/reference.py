"""The kernels in plain torch: the reference for the compiled ones, and the fallback where there are none."""

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import parameters
from cpt_deploy.quantization.kernels.interface import (
    Both,
    Clamp,
    GradientTerms,
    OutputGradient,
    QuantizationParameters,
    Statistics,
)
from cpt_deploy.quantization.kernels.layout import check_not_empty, flat, rows_of
from cpt_deploy.quantization.numerics import affine
from cpt_deploy.quantization.numerics.stochastic_rounding import index_noise


class TorchKernels:
    """Computes each kernel by a few torch operations, on any device."""

    name = "torch"
    observe = staticmethod(parameters.observe)
    gradient_step = staticmethod(parameters.gradient_step)
    real_weight = staticmethod(parameters.real_weight)
    scale = staticmethod(parameters.scale)
    normalise = staticmethod(parameters.normalise)
    normalisation_terms = staticmethod(parameters.normalisation_terms)

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("range", x)
        low, high = torch.aminmax(affine.in_memory_order(x))
        return low, high

    def quantize(self, x: Tensor, qparams: QuantizationParameters) -> Tensor:
        return affine.quantize(x, qparams.scale, qparams.zero_point, qparams.quant_max).to(torch.uint8)

    def requantize(self, codes: Tensor, source: QuantizationParameters, target: QuantizationParameters) -> Tensor:
        return self.quantize(self.dequantize(codes, source), target)

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        return codes.to(torch.float32).sub_(zero_point).to(dtype)

    def dequantize(self, codes: Tensor, qparams: QuantizationParameters) -> Tensor:
        return self.centre(codes, qparams.zero_point, torch.float32).mul_(qparams.scale)

    def quantize_weight(self, weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("quantize_weight", weight)
        codes, scales = affine.quantize_weight(weight, quant_max)
        return codes.to(torch.int8), scales

    def add_range(self, a: Tensor, b: Tensor, qparams_each: Both, clamp: Clamp) -> tuple[Tensor, Tensor]:
        return self.range(self._sum(a, b, qparams_each).clamp_(clamp.low, clamp.high))

    def add_quantize(
        self, a: Tensor, b: Tensor, qparams_each: Both, clamp: Clamp, qparams: QuantizationParameters
    ) -> tuple[Tensor, Tensor]:
        total = self._sum(a, b, qparams_each)
        inside = flat((total > clamp.low) & (total < clamp.high)).to(torch.uint8)
        padded = torch.nn.functional.pad(inside, (0, -len(inside) % 8)).view(-1, 8)
        passed = (padded * _bits(padded.device)).sum(dim=1, dtype=torch.uint8)
        return self.quantize(total.clamp_(clamp.low, clamp.high), qparams), passed

    def _sum(self, a: Tensor, b: Tensor, qparams_each: Both) -> Tensor:
        return self.dequantize(a, qparams_each[0]).add_(self.dequantize(b, qparams_each[1]))

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        inside = ((passed.unsqueeze(1) & _bits(passed.device)) != 0).flatten()[: gradient.numel()]
        out = torch.empty_like(gradient)
        flat(out).copy_(torch.where(inside, flat(gradient), 0.0))
        return out

    def statistics(self, x: Tensor) -> Statistics:
        check_not_empty("statistics", x)
        rows = rows_of(x)
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        low, high = torch.aminmax(rows, dim=0)
        return Statistics(mean, variance, low, high)

    def affine_quantize(
        self, x: Tensor, factor: Tensor, offset: Tensor, clamp: Clamp, qparams: QuantizationParameters
    ) -> Tensor:
        values = (x * _along(factor, x)).add_(_along(offset, x)).clamp_(clamp.low, clamp.high)
        return self.quantize(values, qparams)

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        shifted = sums if shift is None else sums + _along(shift, sums)
        return (shifted.to(torch.float32) * _along(factor, sums)).add_(_along(offset, sums))

    def gradient_sums(self, output: OutputGradient, mean: Tensor) -> tuple[Tensor, Tensor]:
        check_not_empty("gradient_sums", output.x)
        passed = rows_of(_passed(output))
        return passed.sum(dim=0), (passed * (rows_of(output.x) - mean)).sum(dim=0)

    def gradient_range(self, output: OutputGradient, terms: GradientTerms) -> tuple[Tensor, Tensor]:
        return self.range(_gradient(output, terms))

    def gradient_codes(
        self, output: OutputGradient, terms: GradientTerms, step: Tensor, seed: Tensor, dtype: torch.dtype
    ) -> Tensor:
        gradient = _gradient(output, terms)
        return _with_noise(gradient.div_(step), seed).floor_().to(dtype)

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        return _with_noise(gradient / step, seed).floor_().mul_(step)


def _bits(device: torch.device) -> Tensor:
    return torch.bitwise_left_shift(1, torch.arange(8, device=device)).to(torch.uint8)


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1) if x.dim() == 4 else values


def _passed(output: OutputGradient) -> Tensor:
    value = (output.x * _along(output.factor, output.x)).add_(_along(output.offset, output.x))
    inside = (value > output.clamp.low) & (value < output.clamp.high)
    gradient = output.gradient.to(torch.float32)
    return torch.where(inside, gradient, torch.zeros_like(gradient))


def _gradient(output: OutputGradient, terms: GradientTerms) -> Tensor:
    p, q, r = (_along(values, output.x) for values in terms)
    return (_passed(output) * p).add_(output.x * q).add_(r)


def _with_noise(x: Tensor, seed: Tensor) -> Tensor:
    """Add noise that depends on the index in memory to `x`, a dense tensor, in place."""
    return x.add_(index_noise(x.numel(), seed, x.device).as_strided(x.size(), x.stride()))
