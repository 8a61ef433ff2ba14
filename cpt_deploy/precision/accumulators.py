"""Bound the accumulators of an integer layer from its weights: kernels add products of 8-bit integers in int32.

A kernel may add raw products `input · weight` and correct them by `zero point · Σ weights`, for all or some of the
inputs, before or after, in blocks and in any order, with or without the bias: MLAS, the kernel library of onnxruntime,
does each of these somewhere, and its VNNI kernels saturate where others wrap around. The bound here covers every such
partial sum: if it fits into int32, no kernel overflows in any order of summation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INT32_MOST = 2**31 - 1

Sums = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReducedLayer:
    """A layer whose weights have a reduced range: to limit pairs of products or, with many inputs, int32 sums.

    Attributes:
        layer: Its module path.
        channels: Number of its output channels.
        reduced_channels: Number of channels whose range is smaller than their bits allow.
        min_quant_max: The smallest max quantized value of a channel; 127 is that of 8 bits.
    """

    layer: str
    channels: int
    reduced_channels: int
    min_quant_max: int


def worst_sums(
    codes: npt.NDArray[np.integer], bias: npt.NDArray[np.integer] | None = None, *, quant_max: int, zero_point: int
) -> Sums:
    """Return the maximum magnitude of any partial sum per output channel, int64 (O,).

    With `P` and `N` the sums of the magnitudes of a channel's positive and negative weights, sums of raw products lie
    in [−quant_max·N, quant_max·P], and the zero point's share of such a sum lies in [−z·P, z·N].

    Args:
        codes: Quantized weights as they are executed, output channels first: (O, ...).
        bias: Integer bias that is added to the sums, (O,).
        quant_max: Maximum quantized value of the input relative to its minimum: 255 for 8 bits.
        zero_point: Zero point relative to the same minimum: in [0, quant_max]. Signed inputs start at −128, so
            theirs is 128, which is how kernels without signed products see them.
    """
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    above = quant_max * positive + zero_point * negative
    below = quant_max * negative + zero_point * positive
    worst: Sums = np.maximum(above, below)
    return worst if bias is None else worst + np.abs(bias.astype(np.int64))


def worst_average_sum(positions: int, *, quant_max: int) -> int:
    """Return the maximum sum of an average over `positions` inputs, which adds quantized values without weights."""
    return positions * quant_max
