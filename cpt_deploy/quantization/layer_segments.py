"""A layer of a training step on codes: with its BatchNorm, ReLU and quantizer one operation, or by itself."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cpt_deploy.quantization.affine import including_zero
from cpt_deploy.quantization.edges import EdgeQuantizer
from cpt_deploy.quantization.gradients import gradient_step
from cpt_deploy.quantization.kernels import Clamp, Site, Statistics, Terms
from cpt_deploy.quantization.kernels.layout import aligned, dense
from cpt_deploy.quantization.layers import QuantizedLayer, QuantizedLinear
from cpt_deploy.quantization.noise import mix_seed
from cpt_deploy.quantization.products import Scaling, backward_products, forward_product
from cpt_deploy.quantization.segments import Coded, Engine, carrier_of


@dataclass(frozen=True, slots=True)
class LayerSegment:
    """A layer, its BatchNorm if it has one, its clamp, and the quantizer of what comes out.

    Args:
        layer: QuantizedConv2d or QuantizedLinear.
        norm: BatchNorm over the layer's channels, in training.
        clamp: A ReLU's bounds.
        edge: The quantizer.
    """

    layer: QuantizedLayer
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    clamp: Clamp
    edge: EdgeQuantizer

    def __call__(self, x: Coded, engine: Engine) -> Coded:
        """Return the codes of the layer's normalised, clamped and quantized output."""
        affine = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        parameters = (self.layer.weight, self.layer.bias, *affine)
        carrier, codes = _LayerFunction.apply(x.carrier, *parameters, _LayerCall(x, self, engine))
        return Coded(carrier, codes, self.edge.grid())


class _LayerCall(NamedTuple):
    x: Coded
    segment: LayerSegment
    engine: Engine


class _Normalised(NamedTuple):
    """A layer's output `sums · unit` as `sums · factor + offset`; (O,) each.

    Args:
        factor: Real values per unit of the sums.
        offset: Real values.
        mean: Mean of the sums.
        gain: What BatchNorm multiplies the output by, γ/σ; 1 without one.
        deviation: One unit in standard deviations of the output; 0 without BatchNorm.
    """

    factor: Tensor
    offset: Tensor
    mean: Tensor
    gain: Tensor
    deviation: Tensor


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        call: _LayerCall,
    ) -> tuple[Tensor, Tensor]:
        (x, segment, engine), kernels, layer = call, call.engine.kernels, call.segment.layer
        weight_codes, scales = kernels.quantize_weight(weight, _weight_levels(layer))
        sums = forward_product(layer, x.codes, x.grid, weight_codes, kernels)
        statistics = kernels.statistics(sums)
        norm = _normalise(segment, statistics, x.grid.scale * scales, sums.numel() // len(scales))
        ends = torch.stack([statistics.least, statistics.greatest]) * norm.factor + norm.offset
        segment.edge.take(*torch.aminmax(ends.clamp_(*segment.clamp)))
        codes = kernels.affine_quantize(sums, norm.factor, norm.offset, segment.clamp, segment.edge.grid())
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(x.codes, sums, weight_codes, scales, *norm)
        ctx.grid, ctx.segment, ctx.kernels, ctx.has_bias = x.grid, segment, kernels, bias is not None
        ctx.dtype = engine.gradient_dtype
        return carrier_of(codes, engine.gradient_dtype), codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        codes, sums, weight_codes, scales, *values = ctx.saved_tensors
        norm, segment, kernels = _Normalised(*values), ctx.segment, ctx.kernels
        site = Site(aligned(gradient, sums), sums, norm.factor, norm.offset, segment.clamp)
        grad_gamma = grad_beta = None
        terms = Terms(norm.gain, norm.deviation, norm.deviation)
        if segment.norm is not None:
            grad_beta, products = kernels.gradient_sums(site, norm.mean)
            grad_gamma = products * norm.deviation
            terms = _normalisation_terms(norm, grad_gamma, grad_beta, sums.numel() // len(scales))
        weights = (weight_codes, scales)
        grads = _layer_gradients(ctx, segment.layer, site, terms, Coded(gradient, codes, ctx.grid), weights)
        return *grads, grad_gamma, grad_beta, None


def _normalise(segment: LayerSegment, statistics: Statistics, unit: Tensor, count: int) -> _Normalised:
    """Return what makes a layer's output of its sums, and let BatchNorm track the batch.

    Args:
        segment: The segment.
        statistics: Those of the sums.
        unit: The real value of one unit of the sums, (O,).
        count: Values in a channel.
    """
    norm, bias = segment.norm, segment.layer.bias
    if norm is None:
        offset = torch.zeros_like(unit) if bias is None else bias.detach()
        return _Normalised(unit, offset, statistics.mean, torch.ones_like(unit), torch.zeros_like(unit))
    mean, variance = statistics.mean * unit, statistics.variance * unit.square()
    _track(norm, mean if bias is None else mean + bias, variance * (count / max(count - 1, 1)))
    inverse = torch.rsqrt(variance + norm.eps)
    gain = norm.weight * inverse
    offset = torch.addcmul(norm.bias, mean, gain, value=-1)  # the layer's bias is gone with the mean
    return _Normalised(gain * unit, offset, statistics.mean, gain, inverse * unit)


def _track(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Update running statistics as BatchNorm does; the variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)


def _layer_gradients(
    ctx: Any, layer: QuantizedLayer, site: Site, terms: Terms, x: Coded, weights: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Round the gradient of a layer's output and return those of input, weight and bias.

    Args:
        ctx: Of the function whose backward this is.
        layer: The layer.
        site: Where the gradient arrives.
        terms: From there to the layer's output.
        x: The layer's input.
        weights: Codes and scales.
    """
    kernels, precision, (weight_codes, scales) = ctx.kernels, layer.precision, weights
    low, high = including_zero(*kernels.gradient_range(site, terms))
    step = gradient_step(low, high, precision.get_buffer("gradient_levels"))
    seed = mix_seed(precision.seed, layer.index, precision.step)
    rounded = kernels.gradient_codes(site, terms, step, seed, ctx.dtype)
    real_weight = weight_codes * (scales * step).view(-1, *[1] * (weight_codes.dim() - 1))
    grad_input, grad_weight = backward_products(
        layer, rounded, x.codes, x.grid, real_weight, kernels, inward=ctx.needs_input_grad[0]
    )
    grad_bias = None
    if ctx.has_bias:
        dims = [0, 2, 3] if rounded.dim() == 4 else list(range(rounded.dim() - 1))
        grad_bias = rounded.sum(dims, dtype=torch.float32) * step
    return grad_input, grad_weight.mul_(x.grid.scale * step), grad_bias


def _normalisation_terms(norm: _Normalised, grad_gamma: Tensor, grad_beta: Tensor, count: int) -> Terms:
    """Return the gradient through BatchNorm, γ/σ · (g − mean(g) − x̂ · mean(g · x̂)), as a function of the sums."""
    q = norm.gain * norm.deviation * grad_gamma / -count
    return Terms(norm.gain, q, norm.gain * grad_beta / -count - q * norm.mean)


def _weight_levels(layer: QuantizedLayer) -> Tensor:
    return layer.limited_levels(layer.precision.weight_levels_of(layer.index, layer.role))


def layer_output(layer: QuantizedLayer, x: Coded, engine: Engine) -> Tensor:
    """Return a layer's real output, float32, where what follows it is no segment."""
    if isinstance(layer, QuantizedLinear) and x.codes.dim() != 2:
        # kernels take four dimensions for an image; a Linear's are rows of features whatever their number
        rows = Coded(x.carrier.flatten(0, -2), x.codes.flatten(0, -2), x.grid)
        return layer_output(layer, rows, engine).view(*x.codes.shape[:-1], -1)
    result: Tensor = _OutputFunction.apply(x.carrier, layer.weight, layer.bias, layer, x, engine)
    return result


class _OutputFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        carrier: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: QuantizedLayer,
        x: Coded,
        engine: Engine,
    ) -> Tensor:
        weight_codes, scales = engine.kernels.quantize_weight(weight, _weight_levels(layer))
        scaling = Scaling(x.grid.scale * scales, torch.zeros_like(scales) if bias is None else bias.detach())
        output = forward_product(layer, x.codes, x.grid, weight_codes, engine.kernels, scaling)
        ctx.save_for_backward(x.codes, weight_codes, scales)
        ctx.grid, ctx.layer, ctx.kernels = x.grid, layer, engine.kernels
        ctx.has_bias, ctx.dtype = bias is not None, engine.gradient_dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, weight_codes, scales = ctx.saved_tensors
        gradient = dense(gradient)
        if gradient.dim() == 4:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        zeros, ones = torch.zeros_like(scales), torch.ones_like(scales)
        site, terms = Site(gradient, gradient, ones, zeros, Clamp()), Terms(zeros, ones, zeros)
        grads = _layer_gradients(ctx, ctx.layer, site, terms, Coded(gradient, codes, ctx.grid), (weight_codes, scales))
        return *grads, None, None, None
