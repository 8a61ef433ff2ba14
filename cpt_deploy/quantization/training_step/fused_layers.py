"""Layers of the fused training step: fused with BatchNorm, ReLU and activation quantizer, or alone."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cpt_deploy.quantization.kernels import (
    AccumulatorScale,
    BatchNorm,
    Clamp,
    GradientTerms,
    Kernels,
    Normalised,
    OutputGradient,
    Statistics,
    parameters,
)
from cpt_deploy.quantization.kernels.layout import aligned, dense
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import QuantizedLayer, QuantizedLinear
from cpt_deploy.quantization.modules.synchronized_norm import is_synchronized, over_processes, summed_over_processes
from cpt_deploy.quantization.training_step.fused_operations import Engine, QuantizedValues, surrogate_of
from cpt_deploy.quantization.training_step.products import Scaling, backward_products, forward_product


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """A layer, its BatchNorm if it has one, its clamp, and the quantizer of its output.

    Args:
        layer: QuantizedConv2d, QuantizedConvTranspose2d or QuantizedLinear.
        norm: BatchNorm over the layer's channels, in training mode; perhaps synchronized over all processes.
        clamp: Bounds of its ReLU.
        quantizer: Quantizer of the output.
    """

    layer: QuantizedLayer
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    clamp: Clamp
    quantizer: ActivationQuantizer

    def __call__(self, x: QuantizedValues, engine: Engine) -> QuantizedValues:
        """Return the layer's normalised, clamped and quantized output."""
        affine = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        parameters = (self.layer.channel_weight, self.layer.bias, *affine)
        surrogate, codes = _LayerFunction.apply(x.surrogate, *parameters, _LayerCall(x, self, engine))
        return QuantizedValues(surrogate, codes, self.quantizer.qparams())


class _LayerCall(NamedTuple):
    x: QuantizedValues
    fused: FusedLayer
    engine: Engine


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        surrogate: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        call: _LayerCall,
    ) -> tuple[Tensor, Tensor]:
        (x, fused, engine), kernels, layer = call, call.engine.kernels, call.fused.layer
        weight_codes, scales = kernels.quantize_weight(weight, _weight_quant_max(layer, weight))
        sums = forward_product(layer, x.codes, x.qparams, weight_codes, kernels)
        statistics = kernels.statistics(sums)
        unit, own_count = AccumulatorScale(x.qparams.scale, scales), sums.numel() // len(scales)
        norm, ends, ctx.count = _normalise(fused, statistics, unit, own_count, kernels)
        fused.quantizer.take(*ends, kernels)
        codes = kernels.affine_quantize(sums, norm.factor, norm.offset, fused.clamp, fused.quantizer.qparams())
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)  # codes have no gradient; do not allocate zeros for it
        ctx.save_for_backward(x.codes, sums, weight_codes, scales, *norm)
        ctx.qparams, ctx.fused, ctx.kernels, ctx.has_bias = x.qparams, fused, kernels, bias is not None
        ctx.dtype = engine.gradient_dtype
        return surrogate_of(codes, engine.gradient_dtype), codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        codes, sums, weight_codes, scales, *values = ctx.saved_tensors
        norm, fused, kernels = Normalised(*values), ctx.fused, ctx.kernels
        output = OutputGradient(aligned(gradient, sums), sums, norm.factor, norm.offset, fused.clamp)
        grad_gamma = grad_beta = None
        terms = GradientTerms(norm.gain, norm.deviation, norm.deviation)
        if fused.norm is not None:
            grad_beta, products = kernels.gradient_sums(output, norm.mean)
            if is_synchronized(fused.norm):
                grad_gamma = products * norm.deviation  # of this process alone: gradients are averaged later
                terms = parameters.terms(norm, *summed_over_processes(grad_gamma, grad_beta), ctx.count)
            else:
                terms, grad_gamma = kernels.normalisation_terms(norm, grad_beta, products, ctx.count)
        weights = (weight_codes, scales)
        grads = _layer_gradients(
            ctx, fused.layer, output, terms, QuantizedValues(gradient, codes, ctx.qparams), weights
        )
        return *grads, grad_gamma, grad_beta, None


def _normalise(
    fused: FusedLayer, statistics: Statistics, unit: AccumulatorScale, count: int, kernels: Kernels
) -> tuple[Normalised, tuple[Tensor, Tensor], int | Tensor]:
    """Return factors from a layer's sums to its output, the output's range, and the number of values per mean.

    Args:
        fused: The fused layer, whose BatchNorm updates its running averages.
        statistics: Statistics of the sums.
        unit: Real value of 1 in the sums.
        count: Values per channel.
        kernels: Backend.
    """
    bias, norm = fused.layer.bias, fused.norm
    if norm is None or not is_synchronized(norm):
        following = None if norm is None else _batch_norm(norm)
        return *kernels.normalise(statistics, unit, bias, following, fused.clamp, count), count
    per = unit.input * unit.weight  # the scales differ between processes, so they exchange real values
    mean, variance, total = over_processes(statistics.mean * per, statistics.variance * per.square(), count)
    result = parameters.normalised(mean, variance, mean / per, per, bias, _batch_norm(norm), total)
    return result, parameters.ends(statistics, result, fused.clamp), total


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> BatchNorm:
    """Return a BatchNorm's tensors; one without parameters or averages is never fused."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    averages = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return BatchNorm(norm.weight, norm.bias, *averages, norm.momentum, norm.eps)


def _layer_gradients(
    ctx: Any,
    layer: QuantizedLayer,
    output: OutputGradient,
    terms: GradientTerms,
    x: QuantizedValues,
    weights: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Round the gradient of a layer's output, and return the gradients of input, weight and bias.

    Args:
        ctx: Context of the autograd function.
        layer: The layer.
        output: Gradient of the fused output, with the tensors that its backward needs.
        terms: Terms from that gradient to the gradient of the layer's output.
        x: The layer's input.
        weights: Quantized values and scales of the weight.
    """
    kernels, precision, (weight_codes, scales) = ctx.kernels, layer.precision, weights
    step = kernels.gradient_step(*kernels.gradient_range(output, terms), precision.gradient_quant_max)
    rounded = kernels.gradient_codes(output, terms, step, layer.gradient_seed(output.x), ctx.dtype)
    real_weight = kernels.real_weight(weight_codes, scales, step, rounded.dtype)
    grad_input, grad_weight = backward_products(
        layer, rounded, x.codes, x.qparams, real_weight, kernels, inward=ctx.needs_input_grad[0]
    )
    grad_bias = None
    if ctx.has_bias:
        dims = [0, 2, 3] if rounded.dim() == 4 else list(range(rounded.dim() - 1))
        grad_bias = rounded.sum(dims, dtype=torch.float32) * step
    return grad_input, kernels.scale(grad_weight, x.qparams.scale, step), grad_bias


def _weight_quant_max(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    return layer.trained_quant_max(layer.precision.weight_quant_max_of(layer.index, layer.group), weight)


def layer_output(layer: QuantizedLayer, x: QuantizedValues, engine: Engine) -> Tensor:
    """Return a layer's real output, float32, where no fused operation follows it."""
    if isinstance(layer, QuantizedLinear) and x.codes.dim() != 2:
        # kernels treat four dimensions as an image; a Linear's input is rows of features in any number of dimensions
        rows = QuantizedValues(x.surrogate.flatten(0, -2), x.codes.flatten(0, -2), x.qparams)
        return layer_output(layer, rows, engine).view(*x.codes.shape[:-1], -1)
    result: Tensor = _OutputFunction.apply(x.surrogate, layer.channel_weight, layer.bias, layer, x, engine)
    return result


class _OutputFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        surrogate: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: QuantizedLayer,
        x: QuantizedValues,
        engine: Engine,
    ) -> Tensor:
        weight_codes, scales = engine.kernels.quantize_weight(weight, _weight_quant_max(layer, weight))
        scaling = Scaling(x.qparams.scale * scales, torch.zeros_like(scales) if bias is None else bias.detach())
        output = forward_product(layer, x.codes, x.qparams, weight_codes, engine.kernels, scaling)
        ctx.save_for_backward(x.codes, weight_codes, scales)
        ctx.qparams, ctx.layer, ctx.kernels = x.qparams, layer, engine.kernels
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
        output, terms = OutputGradient(gradient, gradient, ones, zeros, Clamp()), GradientTerms(zeros, ones, zeros)
        grads = _layer_gradients(
            ctx, ctx.layer, output, terms, QuantizedValues(gradient, codes, ctx.qparams), (weight_codes, scales)
        )
        return *grads, None, None, None
