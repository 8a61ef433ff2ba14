"""Element-wise Triton kernels, independent of channels, and functions shared by all Triton kernels.

A tensor is an array of n elements. Arithmetic is in float32 with one rounding per operation: division is `div_rn` or
`quotient`, which rounds alike, and kernels are launched without fused multiply-adds. Offsets are 64 bits wide.
"""

import os

import triton
import triton.language as tl

#: Adding and subtracting 1.5 · 2^23 rounds values within ±2^22 to integers, half to even.
_SHIFTER = tl.constexpr(12582912.0)
#: Smaller divisors are scaled up by `_UP`, since their reciprocal can be infinite.
_SMALL = tl.constexpr(2.0**-60)
_UP = tl.constexpr(2.0**64)
#: The interpreter's fma rounds twice, so that there division is `div_rn`.
_FUSES = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
_GOLDEN = tl.constexpr(-1640531527)
_MIX_1 = tl.constexpr(0x2C1B3C6D)
_MIX_2 = tl.constexpr(0x297A2D39)
#: NaN is written out in kernels: as a global it differs from itself, and Triton rejects kernels whose globals changed.
INFINITY = tl.constexpr(float("inf"))
#: Scalars on the device have any alignment; kernels are not specialized on it.
QPARAMS = ["scale", "zero_point", "quant_max"]


@triton.jit
def clamped(z, low, high):
    """Clamp values; NaN compares false and stays NaN."""
    z = tl.where(z < low, low, z)
    return tl.where(z > high, high, z)


@triton.jit
def rounded(x):
    """Round half to even; values beyond ±2^22 stay beyond."""
    return (x + _SHIFTER) - _SHIFTER


@triton.jit
def quotient(x, divisor):
    """Return x / divisor, correctly rounded where it is within ±2^22; beyond, and for NaN, it stays beyond, or NaN.

    Divides many values by one number: a reciprocal for all, and two corrections of each product by its exact remainder
    (Markstein, IBM Journal of Research and Development 34(1), 1990), without the branches of a division.

    Args:
        x: Values.
        divisor: A positive number.
    """
    if not _FUSES:
        return tl.div_rn(x, divisor)
    up = tl.where(divisor < _SMALL, _UP, 1.0)
    x, divisor = x * up, divisor * up
    reciprocal = tl.div_rn(1.0, divisor)
    near = x * reciprocal
    result = tl.fma(tl.fma(-near, divisor, x), reciprocal, near)
    result = tl.fma(tl.fma(-result, divisor, x), reciprocal, result)
    return tl.where(tl.abs(near) < 4194304.0, result, near)


@triton.jit
def code_of(x, scale, zero_point, quant_max):
    """Quantize values; NaN becomes 0."""
    value = tl.minimum(tl.maximum(rounded(quotient(x, scale)) + zero_point, 0.0), quant_max)
    # The low bits of the sum are the integer: a GPU converts types at an eighth of the rate of additions.
    return (value + _SHIFTER).to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def real_of(codes, scale, zero_point):
    """Dequantize values."""
    return (codes.to(tl.float32) - zero_point) * scale


@triton.jit
def noise(index, seed):
    """Hash 64-bit indices and a seed, of which the low 32 bits are used, to values in [0, 1)."""
    bits = index.to(tl.int32) * _GOLDEN + seed
    bits = (bits ^ (bits >> 15)) * _MIX_1
    bits = (bits ^ (bits >> 12)) * _MIX_2
    return ((bits >> 9) & 0x7FFFFF).to(tl.float32) * 1.1920928955078125e-07


@triton.jit
def lesser(low, x, inside):
    """Return the element-wise min, ignoring `x` where not inside."""
    return tl.minimum(low, tl.where(inside, x, INFINITY))


@triton.jit
def greater(high, x, inside):
    """Return the element-wise max, ignoring `x` where not inside."""
    return tl.maximum(high, tl.where(inside, x, -INFINITY))


@triton.jit
def not_numbers(bad, x, inside):
    """Return `bad`, set to 1 where `x` is NaN and inside."""
    return tl.where(inside & (x != x), 1, bad)


@triton.jit
def store_range(low, high, bad, parts, part, count):
    """Store a part's range: `count` mins, then `count` maxs; NaN if a value was NaN."""
    any_bad = tl.max(bad, axis=0) > 0
    tl.store(parts + part, tl.where(any_bad, float("nan"), tl.min(low, axis=0)))
    tl.store(parts + count + part, tl.where(any_bad, float("nan"), tl.max(high, axis=0)))


@triton.jit
def range_kernel(x, parts, n, count, block: tl.constexpr):
    """Compute the range of float32 values, in `count` parts."""
    part = tl.program_id(0)
    low = tl.full([block], INFINITY, tl.float32)
    high = tl.full([block], -INFINITY, tl.float32)
    bad = tl.zeros([block], tl.int32)
    for tile in range(part, tl.cdiv(n, block), count):
        offsets = tl.cast(tile, tl.int64) * block + tl.arange(0, block)
        inside = offsets < n
        value = tl.load(x + offsets, mask=inside, other=0.0)
        low, high = lesser(low, value, inside), greater(high, value, inside)
        bad = not_numbers(bad, value, inside)
    store_range(low, high, bad, parts, part, count)


@triton.jit(do_not_specialize_on_alignment=QPARAMS)
def quantize_kernel(x, codes, n, scale, zero_point, quant_max, block: tl.constexpr):
    """Quantize float32 values."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    value = tl.load(x + offsets, mask=inside, other=0.0)
    tl.store(codes + offsets, code_of(value, tl.load(scale), tl.load(zero_point), tl.load(quant_max)), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["from_scale", "from_zero_point", *QPARAMS])
def requantize_kernel(
    x, codes, n, from_scale, from_zero_point, scale, zero_point, quant_max, block: tl.constexpr
):  # fmt: skip
    """Requantize values from one set of quantization parameters to another."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    value = real_of(tl.load(x + offsets, mask=inside, other=0), tl.load(from_scale), tl.load(from_zero_point))
    tl.store(codes + offsets, code_of(value, tl.load(scale), tl.load(zero_point), tl.load(quant_max)), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["zero_point"])
def centre_kernel(codes, out, n, zero_point, block: tl.constexpr):
    """Subtract the zero point from quantized values, in the type of `out`."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    value = tl.load(codes + offsets, mask=inside, other=0).to(tl.float32) - tl.load(zero_point)
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["scale", "zero_point"])
def dequantize_kernel(codes, out, n, scale, zero_point, block: tl.constexpr):
    """Dequantize a tensor."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    value = real_of(tl.load(codes + offsets, mask=inside, other=0), tl.load(scale), tl.load(zero_point))
    tl.store(out + offsets, value, mask=inside)


SUM = ["a_scale", "a_zero_point", "b_scale", "b_zero_point"]


@triton.jit(do_not_specialize_on_alignment=SUM)
def add_range_kernel(
    a, b, parts, n, count, a_scale, a_zero_point, b_scale, b_zero_point, low_bound, high_bound, block: tl.constexpr
):  # fmt: skip
    """Compute the range of the clamped sum of two quantized tensors, in `count` parts."""
    part = tl.program_id(0)
    scale_a, zero_a, scale_b, zero_b = tl.load(a_scale), tl.load(a_zero_point), tl.load(b_scale), tl.load(b_zero_point)
    low = tl.full([block], INFINITY, tl.float32)
    high = tl.full([block], -INFINITY, tl.float32)
    bad = tl.zeros([block], tl.int32)
    for tile in range(part, tl.cdiv(n, block), count):
        offsets = tl.cast(tile, tl.int64) * block + tl.arange(0, block)
        inside = offsets < n
        left = real_of(tl.load(a + offsets, mask=inside, other=0), scale_a, zero_a)
        right = real_of(tl.load(b + offsets, mask=inside, other=0), scale_b, zero_b)
        value = clamped(left + right, low_bound, high_bound)
        low, high = lesser(low, value, inside), greater(high, value, inside)
        bad = not_numbers(bad, value, inside)
    store_range(low, high, bad, parts, part, count)


@triton.jit(do_not_specialize_on_alignment=[*SUM, *QPARAMS])
def add_quantize_kernel(
    a, b, codes, passed, n, a_scale, a_zero_point, b_scale, b_zero_point, low_bound, high_bound,
    scale, zero_point, quant_max, block: tl.constexpr,
):  # fmt: skip
    """Quantize the clamped sum; bit i % 8 of passed[i / 8] is 1 if the clamp did not change element i."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    left = real_of(tl.load(a + offsets, mask=inside, other=0), tl.load(a_scale), tl.load(a_zero_point))
    right = real_of(tl.load(b + offsets, mask=inside, other=0), tl.load(b_scale), tl.load(b_zero_point))
    value = left + right
    alone = inside & (value > low_bound) & (value < high_bound)
    code = code_of(clamped(value, low_bound, high_bound), tl.load(scale), tl.load(zero_point), tl.load(quant_max))
    tl.store(codes + offsets, code, mask=inside)
    bits = tl.reshape(alone.to(tl.int32), [block // 8, 8]) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(0).to(tl.int64) * (block // 8) + tl.arange(0, block // 8)
    tl.store(passed + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte * 8 < n)


@triton.jit
def mask_kernel(gradient, passed, out, n, block: tl.constexpr):
    """Copy a gradient where its bit is set, else store 0."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    bits = tl.load(passed + offsets // 8, mask=inside, other=0).to(tl.int32)
    alone = ((bits >> (offsets % 8).to(tl.int32)) & 1) != 0
    tl.store(out + offsets, tl.load(gradient + offsets, mask=inside & alone, other=0.0), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["step", "seed"])
def round_gradient_kernel(gradient, out, n, step, seed, block: tl.constexpr):
    """Compute floor(gradient / step + noise) · step."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    width = tl.load(step)
    value = quotient(tl.load(gradient + offsets, mask=inside, other=0.0), width)
    value = tl.floor(noise(offsets, tl.load(seed).to(tl.int32)) + value) * width
    tl.store(out + offsets, value, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["a", "b"])
def scale_kernel(x, out, n, a, b, block: tl.constexpr):
    """Multiply values by the product of two scalars."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n
    factor = tl.load(a) * tl.load(b)
    tl.store(out + offsets, tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * factor, mask=inside)
