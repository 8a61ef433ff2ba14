"""Computations on a few numbers per tensor or channel, in torch operations; compiled backends have kernels for them."""

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import interface as k
from cpt_deploy.quantization.numerics import affine


def whole(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce a range that may be given in parts to 0-dim tensors."""
    return (low, high) if low.dim() == 0 else (low.amin(), high.amax())


@torch.no_grad()
def observe(low: Tensor, high: Tensor, average: k.Average | None, quant_max: k.QuantMax) -> k.Observed:
    """Extend a range to include 0, update the moving average, if any, and return it with its parameters."""
    low, high = affine.including_zero(*whole(low, high))
    if average is not None:
        take(low, high, average)
    own = quant_max.own.clamp(min=quant_max.own_min) if quant_max.own_min else quant_max.own
    qparams_each = (qparams_on(low, high, most, symmetric=quant_max.symmetric) for most in (own, quant_max.scheduled))
    return k.Observed(low, high, *qparams_each)


def qparams_on(low: Tensor, high: Tensor, quant_max: Tensor, *, symmetric: bool) -> k.QuantizationParameters:
    """Return the quantization parameters of a range that includes 0, given the max quantized value."""
    parameters = affine.symmetric_parameters if symmetric else affine.affine_parameters
    return k.QuantizationParameters(*parameters(low, high, quant_max), quant_max)


@torch.no_grad()
def take(low: Tensor, high: Tensor, average: k.Average) -> None:
    """Update a moving average with a range, 0-dim."""
    average.batches.add_(1)
    weight = torch.clamp(1.0 / average.batches, min=average.momentum).to(average.low.dtype)
    average.low.lerp_(low.to(average.low.dtype), weight)
    average.high.lerp_(high.to(average.high.dtype), weight)


def gradient_step(low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
    """Return the quantization step of a gradient, 0-dim: `range / (quant_max − 1)`, or 1 if the range is empty.

    Args:
        low: Min value of the gradient, float32.
        high: Max value of the gradient, float32.
        quant_max: Max quantized value, 0-dim float32.
    """
    low, high = affine.including_zero(*whole(low, high))
    width = (high - low) / (quant_max - 1.0)
    return torch.where(width == 0, torch.ones_like(width), width)


def real_weight(codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `codes · (scales · step)`."""
    return (codes * (scales * step).view(-1, *[1] * (codes.dim() - 1))).to(dtype)


def scale(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return `x · (a · b)`, float32."""
    return x.float().mul_(a * b)


def normalise(
    statistics: k.Statistics,
    unit: k.AccumulatorScale,
    bias: Tensor | None,
    norm: k.BatchNorm | None,
    clamp: k.Clamp,
    count: int,
) -> tuple[k.Normalised, tuple[Tensor, Tensor]]:
    """Return a layer's normalisation and its output's range, and update the running averages of the BatchNorm."""
    per = unit.input * unit.weight
    if norm is None:
        offset = torch.zeros_like(per) if bias is None else bias.detach()
        result = k.Normalised(per, offset, statistics.mean, torch.ones_like(per), torch.zeros_like(per))
    else:
        moments = statistics.mean * per, statistics.variance * per.square()
        result = normalised(*moments, statistics.mean, per, bias, norm, count)
    return result, ends(statistics, result, clamp)


def normalised(
    mean: Tensor, variance: Tensor, centre: Tensor, unit: Tensor, bias: Tensor | None, norm: k.BatchNorm,
    count: int | Tensor,
) -> k.Normalised:  # fmt: skip
    """Return a layer's normalisation, given mean and variance of its sums in real values.

    Args:
        mean: Mean, (C,).
        variance: Biased variance (divided by the count), (C,).
        centre: The mean in units of the sums, (C,).
        unit: Real value of one unit of the sums, (C,).
        bias: Bias of the layer, (C,).
        norm: The BatchNorm, whose running averages are updated.
        count: Number of values per channel.
    """
    norm.batches.add_(1)
    norm.running_mean.lerp_(mean if bias is None else mean + bias, norm.momentum)
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    norm.running_variance.lerp_(variance * (count / others), norm.momentum)
    inverse = torch.rsqrt(variance + norm.eps)
    gain = norm.weight * inverse
    offset = torch.addcmul(norm.bias, mean, gain, value=-1)  # BatchNorm cancels the layer's bias
    return k.Normalised(gain * unit, offset, centre, gain, inverse * unit)


def ends(statistics: k.Statistics, norm: k.Normalised, clamp: k.Clamp) -> tuple[Tensor, Tensor]:
    """Return the range of a normalised and clamped output."""
    values = torch.stack([statistics.low, statistics.high]) * norm.factor + norm.offset
    low, high = torch.aminmax(values.clamp_(*clamp))
    return low, high


def normalisation_terms(
    norm: k.Normalised, passed: Tensor, products: Tensor, count: int
) -> tuple[k.GradientTerms, Tensor]:
    """Return the coefficients of the gradient through BatchNorm, see `terms`, and the gradient of γ."""
    grad_gamma = products * norm.deviation
    return terms(norm, grad_gamma, passed, count), grad_gamma


def terms(norm: k.Normalised, grad_gamma: Tensor, grad_beta: Tensor, count: int | Tensor) -> k.GradientTerms:
    """Return the coefficients p, q, r of the gradient through BatchNorm: passed gradient · p + x · q + r, each (C,)."""
    # Per channel, with n values: x are the layer's integer sums, `unit` is their real value, y = x · unit the layer's
    # output (without bias), and g is the gradient of z that the clamp passed. With σ = √(variance of y + eps):
    #     deviation = unit / σ,   gain = γ / σ,   x̂ = (x − mean) · deviation,   z = γ · x̂ + β
    #     ∂L/∂γ = Σ g · x̂ = deviation · Σ g · (x − mean),   ∂L/∂β = Σ g
    #     ∂L/∂y = γ/σ · (g − mean(g) − x̂ · mean(g · x̂)) = gain · (g − ∂L/∂β / n − (x − mean) · deviation · ∂L/∂γ / n)
    # (Ioffe & Szegedy, 2015). This is linear in g and x, ∂L/∂y = g · p + x · q + r, with
    #     p = gain,   q = −gain · deviation · ∂L/∂γ / n,   r = −gain · ∂L/∂β / n − q · mean
    q = norm.gain * norm.deviation * grad_gamma / -count
    return k.GradientTerms(norm.gain, q, norm.gain * grad_beta / -count - q * norm.mean)
