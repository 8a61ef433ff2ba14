"""How large the sums of an integer layer get, from its codes: kernels add products of 8 bits in int32.

A kernel may add raw products `code · weight` and correct them by `zero point · Σ weights`, of all or of some of the
inputs, before or after, in blocks and in any order, with or without the bias: MLAS, which onnxruntime computes with,
does each of these somewhere, and its VNNI kernels saturate where others wrap around. The bound here is one on every
such partial sum, so that where it fits into int32 no order of summation and no kernel can leave it.
"""

import numpy as np
import numpy.typing as npt

INT32_MOST = 2**31 - 1

Sums = npt.NDArray[np.int64]


def worst_sums(
    codes: npt.NDArray[np.integer], bias: npt.NDArray[np.integer] | None = None, *, levels: int, zero_point: int
) -> Sums:
    """Return the greatest magnitude that any partial sum of each output channel can have, int64 (O,).

    With `P` and `N` the sums of a channel's positive and negative weights' magnitudes, raw products add up to something
    in [−levels·N, levels·P], and the zero point's part of any of them to something in [−z·P, z·N].

    Args:
        codes: Weight codes as they are executed, output channels first: (O, ...).
        bias: Integers that are added to the sums, (O,).
        levels: Greatest code of the input, counted from its least: 255 of 8 bits.
        zero_point: Code of real zero, counted alike: in [0, levels]. Signed codes count from −128, so theirs is 128,
            which is how kernels without signed products see them.
    """
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    above = levels * positive + zero_point * negative
    below = levels * negative + zero_point * positive
    worst: Sums = np.maximum(above, below)
    return worst if bias is None else worst + np.abs(bias.astype(np.int64))


def worst_average_sum(positions: int, *, levels: int) -> int:
    """Return the same of an average over so many positions, whose sums are of codes alone."""
    return positions * levels
