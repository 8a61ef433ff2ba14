"""Products of int8 matrices on a GPU's tensor cores, in Triton, with per-channel sums and scales in the epilogue.

Tensor cores need both int8 operands contiguous along the summed dimension: the weight's gradient, which sums over rows,
needs its operands transposed, and `pack` does that in the pass that converts them to int8. Sums are exact: 32 bits hold
products of up to `MAX_SUMMED` pairs, and the terms of the epilogue are added in 64 bits.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpt_deploy.quantization.kernels.triton import backend

#: Max number of products of two int8 values, each within 2^14, whose sum fits into 32 bits.
MAX_SUMMED = 2**31 // 2**14 - 1


class Epilogue(NamedTuple):
    """The epilogue on exact sums (M, N): `(sums + rows[m] + columns[n]) · factor[n] + offset[n]`; `None` omits a term.

    Args:
        rows: (M,) int64.
        columns: (N,) int64.
        factor: (N,) float32.
        offset: (N,) float32.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    factor: Tensor | None = None
    offset: Tensor | None = None


class Packed(NamedTuple):
    """An int8 matrix with its transpose.

    Args:
        rows: The matrix, (M, N), or `None`.
        columns: Its transpose, (N, M).
        sums: Sum of each column of the matrix, (N,) int32.
    """

    rows: Tensor | None
    columns: Tensor
    sums: Tensor


def multiply(a: Tensor, b: Tensor, epilogue: Epilogue, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `a · bᵀ` with its epilogue, (M, N) in `dtype`.

    Args:
        a: (M, K), int8; or uint8, from which 128 is subtracted.
        b: (N, K), int8.
        epilogue: Terms and factors applied to the sums.
        dtype: float32 or bfloat16.
    """
    a, b = a.contiguous(), b.contiguous()
    (m, k), n = a.shape, len(b)
    out = torch.empty(m, n, dtype=dtype, device=a.device)
    operands = (a, b, out, *(out if values is None else values for values in epilogue), m, n, k)
    kinds = {
        "HAS_ROWS": epilogue.rows is not None,
        "HAS_COLUMNS": epilogue.columns is not None,
        "HAS_FACTOR": epilogue.factor is not None,
        "HAS_OFFSET": epilogue.offset is not None,
        "UNSIGNED": a.dtype == torch.uint8,
    }
    if a.is_cuda:
        backend.launch(tuned_product, lambda sizes: _blocks(m, n, sizes), *operands, **kinds)
    else:
        sizes = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP": 2}
        backend.launch(product, _blocks(m, n, sizes), *operands, **kinds, **sizes)
    return out


def pack(x: Tensor, shift: Tensor | None, *, keep_rows: bool) -> Packed:
    """Return `x − shift` as int8, transposed, and optionally also untransposed.

    Args:
        x: (M, N), uint8, or integers in bfloat16 or float32; the differences lie in [−128, 127].
        shift: 0-dim float32 holding an integer; `None` means 128.
        keep_rows: Whether to return the untransposed matrix too.
    """
    x = x.contiguous()
    m, n = x.shape
    rows = torch.empty(m, n, dtype=torch.int8, device=x.device) if keep_rows else None
    columns = torch.empty(n, m, dtype=torch.int8, device=x.device)
    sums = torch.zeros(n, dtype=torch.int32, device=x.device)
    blocks = (triton.cdiv(m, PACK_BLOCK), triton.cdiv(n, PACK_BLOCK))
    backend.launch(
        packing, blocks, x, columns if shift is None else shift, columns if rows is None else rows, columns, sums, m, n,
        HAS_SHIFT=shift is not None, KEEP_ROWS=keep_rows, BLOCK=PACK_BLOCK,
    )  # fmt: skip
    return Packed(rows, columns, sums)


PACK_BLOCK = 64


def _blocks(m: int, n: int, sizes: Any) -> tuple[int]:
    return (triton.cdiv(m, sizes["BLOCK_M"]) * triton.cdiv(n, sizes["BLOCK_N"]),)


@triton.jit  # type: ignore[untyped-decorator]
def product(
    a: tl.tensor, b: tl.tensor, out: tl.tensor, rows: tl.tensor, columns: tl.tensor, factor: tl.tensor,
    offset: tl.tensor, height: tl.tensor, width: tl.tensor, depth: tl.tensor,
    HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_OFFSET: tl.constexpr,  # noqa: N803
    UNSIGNED: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    """Compute one block of the product; `GROUP` rows of blocks are computed together to share columns in the cache."""
    per_group = GROUP * tl.cdiv(width, BLOCK_N)
    first = tl.program_id(0) // per_group * GROUP
    group = tl.minimum(tl.cdiv(height, BLOCK_M) - first, GROUP)
    within = tl.program_id(0) % per_group
    m = (first + within % group) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // group * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    left = a + m[:, None].to(tl.int64) * depth + k[None, :]
    right = b + n[None, :].to(tl.int64) * depth + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, depth, BLOCK_K):
        inside = k < depth - start
        x = tl.load(left + start, mask=(m[:, None] < height) & inside[None, :], other=0)
        y = tl.load(right + start, mask=(n[None, :] < width) & inside[:, None], other=0)
        if UNSIGNED:
            x = (x ^ 128).to(tl.int8, bitcast=True)
        sums = tl.dot(x, y, sums, out_dtype=tl.int32)
    total = sums
    if HAS_ROWS:
        total = total.to(tl.int64) + tl.load(rows + m, mask=m < height, other=0)[:, None]
    if HAS_COLUMNS:
        total = total.to(tl.int64) + tl.load(columns + n, mask=n < width, other=0)[None, :]
    result = total.to(tl.float32)
    if HAS_FACTOR:
        result = result * tl.load(factor + n, mask=n < width, other=0.0)[None, :]
    if HAS_OFFSET:
        result = result + tl.load(offset + n, mask=n < width, other=0.0)[None, :]
    place = out + m[:, None].to(tl.int64) * width + n[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(m[:, None] < height) & (n[None, :] < width))


@triton.jit  # type: ignore[untyped-decorator]
def packing(
    x: tl.tensor, shift: tl.tensor, rows: tl.tensor, columns: tl.tensor, sums: tl.tensor,
    height: tl.tensor, width: tl.tensor,
    HAS_SHIFT: tl.constexpr, KEEP_ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
) -> None:  # fmt: skip
    """Convert one block of a matrix to int8 and store it transposed; NaN becomes 0."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (m[:, None] < height) & (n[None, :] < width)
    place = m[:, None].to(tl.int64) * width + n[None, :]
    values = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    values -= tl.load(shift) if HAS_SHIFT else 128.0
    codes = tl.where(inside & (values == values), values, 0.0).to(tl.int32)
    if KEEP_ROWS:
        tl.store(rows + place, codes.to(tl.int8), mask=inside)
    turned = columns + n[:, None].to(tl.int64) * height + m[None, :]
    tl.store(turned, tl.trans(codes).to(tl.int8), mask=(n[:, None] < width) & (m[None, :] < height))
    tl.atomic_add(sums + n, tl.sum(codes, axis=0), mask=n < width)


#: Candidates of the autotuner, which selects the fastest at the first product of each shape; sums are exact, so the
#: result does not depend on the choice.
CONFIGURATIONS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in (
        (128, 256, 128, 8, 3),
        (128, 128, 128, 8, 4),
        (128, 128, 64, 4, 4),
        (64, 128, 128, 4, 4),
    )
]
tuned_product: Any = triton.autotune(CONFIGURATIONS, key=["height", "width", "depth", "UNSIGNED"])(product)
