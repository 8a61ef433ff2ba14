"""Triton kernels on a few numbers per tensor or channel, each one launch in place of ten torch operations."""

import triton
import triton.language as tl

from cpt_deploy.quantization.kernels.triton.elements import (
    INFINITY,
    clamped,
    greater,
    lesser,
    not_numbers,
    rounded,
)


@triton.jit
def merged_range(low, high, count, block: tl.constexpr):
    """Return the range of `count` parts, extended to include 0; NaN if a part is NaN."""
    index = tl.arange(0, block)
    bottom = tl.full([block], INFINITY, tl.float32)
    top = tl.full([block], -INFINITY, tl.float32)
    bad = tl.zeros([block], tl.int32)
    for start in range(0, count, block):
        inside = start + index < count
        lows = tl.load(low + start + index, mask=inside, other=0.0)
        highs = tl.load(high + start + index, mask=inside, other=0.0)
        bottom, top = lesser(bottom, lows, inside), greater(top, highs, inside)
        bad = not_numbers(not_numbers(bad, lows, inside), highs, inside)
    any_bad = tl.max(bad, axis=0) > 0
    bottom, top = tl.min(bottom, axis=0), tl.max(top, axis=0)
    bottom, top = tl.where(bottom > 0.0, 0.0, bottom), tl.where(top < 0.0, 0.0, top)
    return tl.where(any_bad, float("nan"), bottom), tl.where(any_bad, float("nan"), top)


@triton.jit
def store_qparams(low, high, quant_max, out, symmetric: tl.constexpr):
    """Store scale, zero point and max quantized value of a range."""
    if symmetric:
        zero_point = tl.div_rn(quant_max + 1.0, 2.0)
        width = tl.div_rn(tl.where(high > -low, high, -low), zero_point - 1.0)
        scale = tl.where(width == 0.0, 1.0, width)
    else:
        width = tl.div_rn(high - low, quant_max)
        scale = tl.where(width == 0.0, 1.0, width)
        zero_point = clamped(rounded(tl.div_rn(-low, scale)), 0.0, quant_max)
    tl.store(out, scale)
    tl.store(out + 1, zero_point)
    tl.store(out + 2, quant_max)


@triton.jit
def moved(average, value, weight):
    """Move an average towards a value, with the arithmetic of torch.lerp."""
    before = tl.load(average)
    near = before + weight * (value - before)
    far = value - (value - before) * (1.0 - weight)
    tl.store(average, tl.where(weight < 0.5, near, far))


@triton.jit(
    do_not_specialize=["count"],
    do_not_specialize_on_alignment=["low", "high", "average_low", "average_high", "batches", "own", "scheduled", "out"],
)
def observe_kernel(
    low, high, count, average_low, average_high, batches, momentum, own, scheduled, own_min, out,
    averages: tl.constexpr, symmetric: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Store range with 0 and quantization parameters of tensor and scheduled layers, out (8,); update the average."""
    bottom, top = merged_range(low, high, count, block)
    if averages:
        number = tl.load(batches) + 1
        tl.store(batches, number)
        weight = tl.div_rn(1.0, number.to(tl.float32))
        weight = tl.where(weight < momentum, momentum, weight)
        moved(average_low, bottom, weight)
        moved(average_high, top, weight)
    tl.store(out, bottom)
    tl.store(out + 1, top)
    own_quant_max = tl.load(own)
    store_qparams(bottom, top, tl.where(own_quant_max < own_min, own_min, own_quant_max), out + 2, symmetric)
    store_qparams(bottom, top, tl.load(scheduled), out + 5, symmetric)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["low", "high", "quant_max", "out"])
def gradient_step_kernel(low, high, count, quant_max, out, block: tl.constexpr):
    """Compute the quantization step of a gradient."""
    bottom, top = merged_range(low, high, count, block)
    width = tl.div_rn(top - bottom, tl.load(quant_max) - 1.0)
    tl.store(out, tl.where(width == 0.0, 1.0, width))


@triton.jit(do_not_specialize_on_alignment=["quant_max"])
def quantize_weight_kernel(weight, codes, scales, inputs, quant_max, quant_max_stride, block: tl.constexpr):
    """Quantize one output channel per program, and store its scale."""
    channel = tl.program_id(0).to(tl.int64)
    row = weight + channel * inputs
    index = tl.arange(0, block)
    low = tl.full([block], INFINITY, tl.float32)
    high = tl.full([block], -INFINITY, tl.float32)
    bad = tl.zeros([block], tl.int32)
    for start in range(0, inputs, block):
        inside = start + index < inputs
        value = tl.load(row + start + index, mask=inside, other=0.0)
        low, high = lesser(low, value, inside), greater(high, value, inside)
        bad = not_numbers(bad, value, inside)
    most = tl.load(quant_max + channel * quant_max_stride)
    smallest, largest = tl.min(low, axis=0), tl.max(high, axis=0)
    scale = tl.div_rn(tl.where(largest > -smallest, largest, -smallest), most)
    scale = tl.where(tl.max(bad, axis=0) > 0, float("nan"), tl.where(scale == 0.0, 1.0, scale))
    tl.store(scales + channel, scale)
    for start in range(0, inputs, block):
        inside = start + index < inputs
        value = tl.load(row + start + index, mask=inside, other=0.0)
        code = clamped(rounded(tl.div_rn(value, scale)), -most, most)
        tl.store(codes + channel * inputs + start + index, code.to(tl.int32).to(tl.int8), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["step"])
def real_weight_kernel(codes, out, scales, inputs, step, block: tl.constexpr):
    """Compute codes · (scales · step), in the type of `out`."""
    channel = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * block + tl.arange(0, block)
    inside = index < inputs
    place = channel * inputs + index
    value = tl.load(codes + place, mask=inside, other=0).to(tl.float32) * (tl.load(scales + channel) * tl.load(step))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["unit", "batches"])
def normalise_kernel(
    sums_mean, sums_variance, sums_low, sums_high, unit, scales, bias,
    gamma, beta, running_mean, running_variance, batches, momentum, eps, count,
    out, ends, channels, low_bound, high_bound,
    biased: tl.constexpr, normed: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Compute a layer's normalisation, out (5, channels), and the ranges after the clamp, ends (2, channels)."""
    columns = tl.program_id(0) * width + tl.arange(0, width)
    there = columns < channels
    per = tl.load(unit) * tl.load(scales + columns, mask=there, other=0.0)
    mean = tl.load(sums_mean + columns, mask=there, other=0.0)
    constant = tl.load(bias + columns, mask=there, other=0.0) if biased else tl.zeros([width], tl.float32)
    if normed:
        variance = tl.load(sums_variance + columns, mask=there, other=0.0) * (per * per)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)
        real = mean * per
        old = tl.load(running_mean + columns, mask=there, other=0.0)
        tl.store(running_mean + columns, old + momentum * (real + constant - old), mask=there)
        old = tl.load(running_variance + columns, mask=there, other=0.0)
        unbiased = variance * tl.div_rn(count.to(tl.float32), tl.maximum(count - 1, 1).to(tl.float32))
        tl.store(running_variance + columns, old + momentum * (unbiased - old), mask=there)
        inverse = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
        gain = tl.load(gamma + columns, mask=there, other=0.0) * inverse
        offset = tl.load(beta + columns, mask=there, other=0.0) - real * gain
        factor, deviation = gain * per, inverse * per
    else:
        factor, offset = per, constant
        gain, deviation = tl.full([width], 1.0, tl.float32), tl.zeros([width], tl.float32)
    tl.store(out + columns, factor, mask=there)
    tl.store(out + channels + columns, offset, mask=there)
    tl.store(out + 2 * channels + columns, mean, mask=there)
    tl.store(out + 3 * channels + columns, gain, mask=there)
    tl.store(out + 4 * channels + columns, deviation, mask=there)
    first = tl.load(sums_low + columns, mask=there, other=0.0) * factor + offset
    second = tl.load(sums_high + columns, mask=there, other=0.0) * factor + offset
    first, second = clamped(first, low_bound, high_bound), clamped(second, low_bound, high_bound)
    bad = (first != first) | (second != second)
    bottom, top = tl.where(first < second, first, second), tl.where(first < second, second, first)
    tl.store(ends + columns, tl.where(bad, float("nan"), bottom), mask=there)
    tl.store(ends + channels + columns, tl.where(bad, float("nan"), top), mask=there)


@triton.jit(do_not_specialize=["count"])
def normalisation_terms_kernel(mean, gain, deviation, passed, products, out, channels, count, width: tl.constexpr):
    """Compute q, r and the gradient of γ, out (3, channels); derived in `terms` of parameters.py, p is `gain`."""
    columns = tl.program_id(0) * width + tl.arange(0, width)
    there = columns < channels
    gains = tl.load(gain + columns, mask=there, other=0.0)
    deviations = tl.load(deviation + columns, mask=there, other=0.0)
    number = -count.to(tl.float32)
    grad_gamma = tl.load(products + columns, mask=there, other=0.0) * deviations
    q = tl.div_rn(gains * deviations * grad_gamma, number)
    r = tl.div_rn(gains * tl.load(passed + columns, mask=there, other=0.0), number)
    r -= q * tl.load(mean + columns, mask=there, other=0.0)
    tl.store(out + columns, q, mask=there)
    tl.store(out + channels + columns, r, mask=there)
    tl.store(out + 2 * channels + columns, grad_gamma, mask=there)
