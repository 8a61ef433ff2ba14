"""Convolutions of quantized values on a GPU's tensor cores, in Triton: exact integer sums, read from one byte a value.

The convolution is a matrix product whose left operand is gathered while it is read (an implicit GEMM): a row for each
output position, a column for each weight of a filter. Tensor cores multiply int8, so 128 is subtracted from the codes;
what that and the zero point change is the same for all positions of a filter, because padding is read as the zero
point. cuDNN's convolutions are no alternative: those that return float32 may compute by FFT or Winograd, which rounds.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpt_deploy.quantization.kernels.triton import backend
from cpt_deploy.quantization.kernels.triton.int8_matmul import MAX_SUMMED

#: Filters with fewer inputs than this have several positions in one block of columns.
_MIN_INPUTS = 64


class Geometry(NamedTuple):
    """Geometry of a convolution; (vertical, horizontal) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def is_summed_exactly(weight: Tensor) -> bool:
    """Return whether 32 bits hold the sums of a convolution with this weight, (O, I, kh, kw)."""
    return 2 * weight[0].numel() <= MAX_SUMMED


def convolve(codes: Tensor, zero_point: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the integer sums of `codes − zero_point` and a weight, float32 (N, O, H', W') in channels-last memory.

    Args:
        codes: uint8 (N, I, H, W).
        zero_point: 0-dim float32 holding an integer in [0, 255].
        weight: int8 (O, I / groups, kh, kw) within ±127, see `is_summed_exactly`.
        geometry: Stride, padding with the zero point, dilation and groups.
    """
    codes = codes.contiguous(memory_format=torch.channels_last)
    batch, _, height, width = codes.shape
    outputs, inputs, kernel_height, kernel_width = weight.shape
    filters = weight.permute(0, 2, 3, 1).contiguous()  # (O, kh, kw, I): columns in the order in which codes lie
    out_height, out_width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            (height, width), geometry.padding, geometry.dilation, weight.shape[2:], geometry.stride, strict=True
        )
    )
    out = torch.empty((batch, outputs, out_height, out_width), device=codes.device, memory_format=torch.channels_last)
    sums = filters.sum(dim=(1, 2, 3), dtype=torch.int32)
    rows, each = batch * out_height * out_width, outputs // geometry.groups
    blocks, options = _blocks(each, inputs, interpreted=codes.device.type == "cpu")
    per_tap = triton.cdiv(inputs, blocks["BLOCK_K"])
    grid = (triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(each, blocks["BLOCK_N"]), geometry.groups)
    backend.launch(
        convolution_kernel, grid,
        codes, filters, sums, out, zero_point, rows, height, width, out_height, out_width, inputs, each,
        per_tap, kernel_height * kernel_width * per_tap, *geometry.stride, *geometry.padding, *geometry.dilation,
        KERNEL_H=kernel_height, KERNEL_W=kernel_width, FEW_INPUTS=inputs if inputs < _MIN_INPUTS else 0,
        **blocks, **options,
    )  # fmt: skip
    return out


def _blocks(outputs: int, inputs: int, *, interpreted: bool) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the sizes of blocks, and options of their compilation."""
    if interpreted:
        return {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32}, {}
    columns = min(max(triton.next_power_of_2(outputs), 16), 128)
    sizes = {"BLOCK_M": 128, "BLOCK_N": columns, "BLOCK_K": 64 if inputs < 2 * _MIN_INPUTS else 128}
    return sizes, {"num_warps": 8 if columns == 128 else 4, "num_stages": 3}


@triton.jit(do_not_specialize_on_alignment=["zero_point"])  # type: ignore[untyped-decorator]
def convolution_kernel(
    codes: tl.tensor, filters: tl.tensor, filter_sums: tl.tensor, out: tl.tensor, zero_point: tl.tensor,
    rows: tl.tensor, height: tl.tensor, width: tl.tensor, out_height: tl.tensor, out_width: tl.tensor,
    inputs: tl.tensor, outputs: tl.tensor, per_tap: tl.tensor, steps: tl.tensor, stride_h: tl.tensor,
    stride_w: tl.tensor, padding_h: tl.tensor, padding_w: tl.tensor, dilation_h: tl.tensor, dilation_w: tl.tensor,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, FEW_INPUTS: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    """Compute one block of output positions and filters of a group; `inputs` and `outputs` are those of a group.

    A step multiplies a block of columns: of one position of the filter, which has `per_tap` of them. With `FEW_INPUTS`,
    which is then the number of inputs, a block has several positions of the filter.
    """
    across = tl.cdiv(outputs, BLOCK_N)
    m = tl.program_id(0) // across * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    group, groups = tl.program_id(1), tl.num_programs(1)
    image, place = m // (out_height * out_width), m % (out_height * out_width)
    top, left = place // out_width * stride_h - padding_h, place % out_width * stride_w - padding_w
    there, used = m < rows, n < outputs
    first = codes + image.to(tl.int64) * height * width * (inputs * groups) + group * inputs
    right = filters + (group * outputs + n).to(tl.int64) * (KERNEL_H * KERNEL_W * inputs)
    zero = tl.load(zero_point)
    zero = tl.where(zero == zero, zero, 0.0).to(tl.int32)  # a NaN is in the scale as well
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    if FEW_INPUTS:
        for start in range(0, KERNEL_H * KERNEL_W * FEW_INPUTS, BLOCK_K):
            column = start + k
            tap = column // FEW_INPUTS
            inside = column < KERNEL_H * KERNEL_W * FEW_INPUTS
            y = top[:, None] + (tap // KERNEL_W * dilation_h)[None, :]
            x = left[:, None] + (tap % KERNEL_W * dilation_w)[None, :]
            seen = there[:, None] & inside[None, :] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            offsets = (y * width + x) * (inputs * groups) + (column % FEW_INPUTS)[None, :]
            a = tl.load(first[:, None] + offsets, mask=seen, other=zero.to(tl.uint8))
            b = tl.load(right[None, :] + column[:, None], mask=used[None, :] & inside[:, None], other=0)
            sums = tl.dot((a ^ 128).to(tl.int8, bitcast=True), b, sums, out_dtype=tl.int32)
    else:
        for step in range(0, steps):
            tap, column = step // per_tap, step % per_tap * BLOCK_K + k
            inside = column < inputs
            y, x = top + tap // KERNEL_W * dilation_h, left + tap % KERNEL_W * dilation_w
            seen = there & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            position = first + (y * width + x) * (inputs * groups)
            mask = seen[:, None] & inside[None, :]
            a = tl.load(position[:, None] + column[None, :], mask=mask, other=zero.to(tl.uint8))
            wanted = right + tap * inputs
            b = tl.load(wanted[None, :] + column[:, None], mask=used[None, :] & inside[:, None], other=0)
            sums = tl.dot((a ^ 128).to(tl.int8, bitcast=True), b, sums, out_dtype=tl.int32)
    shift = (128 - zero) * tl.load(filter_sums + group * outputs + n, mask=used, other=0)
    target = out + m[:, None].to(tl.int64) * (outputs * groups) + (group * outputs + n)[None, :]
    tl.store(target, (sums + shift[None, :]).to(tl.float32), mask=there[:, None] & used[None, :])
