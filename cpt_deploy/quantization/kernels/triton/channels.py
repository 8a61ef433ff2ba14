"""Triton kernels on rows × channels: normalise, clamp and quantize a layer's output, forward and backward.

Channels are innermost. A program computes a block of channels in one tile of rows, or in every `count`-th tile; the
partition of rows depends on the shape alone, so the sums are reproducible.
"""

import triton
import triton.language as tl

from cpt_deploy.quantization.kernels.triton.elements import (
    INFINITY,
    QPARAMS,
    clamped,
    code_of,
    greater,
    lesser,
    noise,
    not_numbers,
    quotient,
    store_range,
)


@triton.jit
def tile_of(tile, rows, columns, channels, rows_a_tile: tl.constexpr):
    """Return the offsets of a tile's elements, and a mask of those inside the tensor."""
    row = tl.cast(tile, tl.int64) * rows_a_tile + tl.arange(0, rows_a_tile)
    offsets = row[:, None] * channels + columns[None, :]
    return offsets, (row < rows)[:, None] & (columns < channels)[None, :]


@triton.jit
def statistics_kernel(x, parts, rows, channels, count, rows_a_tile: tl.constexpr, width: tl.constexpr):
    """Compute per part and channel the sums of x − x[row 0] and of its square, min and max: (count, 4, channels)."""
    part = tl.program_id(0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    first = tl.load(x + columns, mask=columns < channels, other=0.0)[None, :]
    sums = tl.zeros([rows_a_tile, width], tl.float32)
    squares = tl.zeros([rows_a_tile, width], tl.float32)
    low = tl.full([rows_a_tile, width], INFINITY, tl.float32)
    high = tl.full([rows_a_tile, width], -INFINITY, tl.float32)
    for tile in range(part, tl.cdiv(rows, rows_a_tile), count):
        offsets, inside = tile_of(tile, rows, columns, channels, rows_a_tile)
        value = tl.load(x + offsets, mask=inside, other=0.0)
        distance = tl.where(inside, value - first, 0.0)
        sums += distance
        squares += distance * distance
        low, high = lesser(low, value, inside), greater(high, value, inside)
    out = parts + part.to(tl.int64) * 4 * channels + columns
    there = columns < channels
    tl.store(out, tl.sum(sums, axis=0), mask=there)
    tl.store(out + channels, tl.sum(squares, axis=0), mask=there)
    tl.store(out + 2 * channels, tl.min(low, axis=0), mask=there)
    tl.store(out + 3 * channels, tl.max(high, axis=0), mask=there)


@triton.jit
def merge_statistics_kernel(
    x, parts, out, rows, channels, count, parts_a_tile: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    """Merge the parts to mean, variance, min and max of each channel, (4, channels); sums in float64."""
    columns = tl.program_id(0) * width + tl.arange(0, width)
    there = columns < channels
    sums = tl.zeros([parts_a_tile, width], tl.float64)
    squares = tl.zeros([parts_a_tile, width], tl.float64)
    low = tl.full([parts_a_tile, width], INFINITY, tl.float32)
    high = tl.full([parts_a_tile, width], -INFINITY, tl.float32)
    for start in range(0, count, parts_a_tile):
        part = (start + tl.arange(0, parts_a_tile)).to(tl.int64)
        inside = (part < count)[:, None] & there[None, :]
        place = parts + part[:, None] * 4 * channels + columns[None, :]
        sums += tl.load(place, mask=inside, other=0.0)
        squares += tl.load(place + channels, mask=inside, other=0.0)
        low = lesser(low, tl.load(place + 2 * channels, mask=inside, other=0.0), inside)
        high = greater(high, tl.load(place + 3 * channels, mask=inside, other=0.0), inside)
    number = tl.cast(rows, tl.float64)  # for a single row it is a Python constant, which has no `.to`
    mean = tl.sum(sums, axis=0) / number
    variance = tl.sum(squares, axis=0) / number - mean * mean
    variance = tl.where(variance < 0.0, 0.0, variance)
    first = tl.load(x + columns, mask=there, other=0.0)
    tl.store(out + columns, (mean + first).to(tl.float32), mask=there)
    tl.store(out + channels + columns, variance.to(tl.float32), mask=there)
    tl.store(out + 2 * channels + columns, tl.min(low, axis=0), mask=there)
    tl.store(out + 3 * channels + columns, tl.max(high, axis=0), mask=there)


@triton.jit(do_not_specialize_on_alignment=QPARAMS)
def affine_quantize_kernel(
    x, codes, factor, offset, rows, channels, low_bound, high_bound, scale, zero_point, quant_max,
    rows_a_tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Quantize clamp(x · factor + offset)."""
    columns = tl.program_id(1) * width + tl.arange(0, width)
    there = columns < channels
    offsets, inside = tile_of(tl.program_id(0), rows, columns, channels, rows_a_tile)
    a = tl.load(factor + columns, mask=there, other=0.0)[None, :]
    b = tl.load(offset + columns, mask=there, other=0.0)[None, :]
    value = clamped(tl.load(x + offsets, mask=inside, other=0.0) * a + b, low_bound, high_bound)
    tl.store(codes + offsets, code_of(value, tl.load(scale), tl.load(zero_point), tl.load(quant_max)), mask=inside)


@triton.jit
def scale_sums_kernel(
    x, out, shift, factor, offset, rows, channels, shifted: tl.constexpr, rows_a_tile: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    """Compute (x + shift) · factor + offset."""
    columns = tl.program_id(1) * width + tl.arange(0, width)
    there = columns < channels
    offsets, inside = tile_of(tl.program_id(0), rows, columns, channels, rows_a_tile)
    value = tl.load(x + offsets, mask=inside, other=0)
    if shifted:
        value += tl.load(shift + columns, mask=there, other=0)[None, :]
    a = tl.load(factor + columns, mask=there, other=0.0)[None, :]
    b = tl.load(offset + columns, mask=there, other=0.0)[None, :]
    tl.store(out + offsets, value.to(tl.float32) * a + b, mask=inside)


@triton.jit
def passed_gradient(gradient, offsets, inside, x, a, b, low_bound, high_bound):
    """Return the gradient where the clamp does not change x · a + b, else 0."""
    value = x * a + b
    alone = inside & (value > low_bound) & (value < high_bound)
    return tl.where(alone, tl.load(gradient + offsets, mask=inside, other=0.0).to(tl.float32), 0.0)


@triton.jit
def gradient_sums_kernel(
    gradient, x, factor, offset, parts, rows, channels, count, low_bound, high_bound,
    rows_a_tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Compute per part and channel the sums of passed gradient and of it times x − x[row 0]: (count, 2, channels)."""
    part = tl.program_id(0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    there = columns < channels
    first = tl.load(x + columns, mask=there, other=0.0)[None, :]
    a = tl.load(factor + columns, mask=there, other=0.0)[None, :]
    b = tl.load(offset + columns, mask=there, other=0.0)[None, :]
    sums = tl.zeros([rows_a_tile, width], tl.float32)
    products = tl.zeros([rows_a_tile, width], tl.float32)
    for tile in range(part, tl.cdiv(rows, rows_a_tile), count):
        offsets, inside = tile_of(tile, rows, columns, channels, rows_a_tile)
        value = tl.load(x + offsets, mask=inside, other=0.0)
        passed = passed_gradient(gradient, offsets, inside, value, a, b, low_bound, high_bound)
        sums += passed
        products += passed * tl.where(inside, value - first, 0.0)
    out = parts + part.to(tl.int64) * 2 * channels + columns
    tl.store(out, tl.sum(sums, axis=0), mask=there)
    tl.store(out + channels, tl.sum(products, axis=0), mask=there)


@triton.jit
def merge_gradient_sums_kernel(
    x, mean, parts, out, channels, count, parts_a_tile: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    """Merge both sums of each channel, (2, channels), the second relative to the mean; sums in float64."""
    columns = tl.program_id(0) * width + tl.arange(0, width)
    there = columns < channels
    sums = tl.zeros([parts_a_tile, width], tl.float64)
    products = tl.zeros([parts_a_tile, width], tl.float64)
    for start in range(0, count, parts_a_tile):
        part = (start + tl.arange(0, parts_a_tile)).to(tl.int64)
        inside = (part < count)[:, None] & there[None, :]
        place = parts + part[:, None] * 2 * channels + columns[None, :]
        sums += tl.load(place, mask=inside, other=0.0)
        products += tl.load(place + channels, mask=inside, other=0.0)
    total = tl.sum(sums, axis=0)
    distance = tl.load(mean + columns, mask=there, other=0.0) - tl.load(x + columns, mask=there, other=0.0)
    tl.store(out + columns, total.to(tl.float32), mask=there)
    about = tl.sum(products, axis=0) - distance.to(tl.float64) * total
    tl.store(out + channels + columns, about.to(tl.float32), mask=there)


@triton.jit
def gradient_at(gradient, offsets, inside, columns, channels, x, factor, offset, p, q, r, low_bound, high_bound):
    """Return the gradient of the layer's output: passed · p + x · q + r, derived in `terms` of parameters.py."""
    there = columns < channels
    a = tl.load(factor + columns, mask=there, other=0.0)[None, :]
    b = tl.load(offset + columns, mask=there, other=0.0)[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0)
    passed = passed_gradient(gradient, offsets, inside, value, a, b, low_bound, high_bound)
    result = passed * tl.load(p + columns, mask=there, other=0.0)[None, :]
    result += value * tl.load(q + columns, mask=there, other=0.0)[None, :]
    return result + tl.load(r + columns, mask=there, other=0.0)[None, :]


@triton.jit
def gradient_range_kernel(
    gradient, x, factor, offset, p, q, r, parts, rows, channels, count, low_bound, high_bound,
    rows_a_tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Compute the range of the gradient of the layer's output, in one part per program."""
    part = tl.program_id(0)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    low = tl.full([rows_a_tile, width], INFINITY, tl.float32)
    high = tl.full([rows_a_tile, width], -INFINITY, tl.float32)
    bad = tl.zeros([rows_a_tile, width], tl.int32)
    for tile in range(part, tl.cdiv(rows, rows_a_tile), count):
        offsets, inside = tile_of(tile, rows, columns, channels, rows_a_tile)
        value = gradient_at(
            gradient, offsets, inside, columns, channels, x, factor, offset, p, q, r, low_bound, high_bound
        )  # fmt: skip
        low, high = lesser(low, value, inside), greater(high, value, inside)
        bad = not_numbers(bad, value, inside)
    number = tl.program_id(1) * count + part
    whole = count * tl.num_programs(1)
    store_range(tl.min(low, axis=0), tl.max(high, axis=0), tl.max(bad, axis=0), parts, number, whole)


@triton.jit(do_not_specialize_on_alignment=["step", "seed"])
def gradient_codes_kernel(
    gradient, x, factor, offset, p, q, r, codes, rows, channels, low_bound, high_bound, step, seed,
    rows_a_tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the layer's output in steps, rounded stochastically, in the type of `codes`."""
    columns = tl.program_id(1) * width + tl.arange(0, width)
    offsets, inside = tile_of(tl.program_id(0), rows, columns, channels, rows_a_tile)
    value = gradient_at(
        gradient, offsets, inside, columns, channels, x, factor, offset, p, q, r, low_bound, high_bound
    )  # fmt: skip
    value = tl.floor(noise(offsets, tl.load(seed).to(tl.int32)) + quotient(value, tl.load(step)))
    tl.store(codes + offsets, value.to(codes.dtype.element_ty), mask=inside)
