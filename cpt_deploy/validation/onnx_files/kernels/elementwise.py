"""Sums, products and tables of integers element by element, in the exact arithmetic of onnxruntime's kernels."""

from collections.abc import Callable

import numpy as np

from cpt_deploy.validation.onnx_files.kernels.calls import Array, Call, Floats, Recomputed, saturated


def _swapped(first: Array, second: Array) -> bool:
    """Return whether the kernel exchanges its operands, since it takes a repeated value only as the second one."""
    if first.size == 1 or second.size == 1:
        return first.size < second.size
    return first.ndim == second.ndim and first.shape[-1] == 1 < second.shape[-1]


def _operands(call: Call) -> tuple[tuple[Array, Floats, Array], tuple[Array, Floats, Array]]:
    pairs = [(call.at(i), call.scale(i + 1).reshape(()), call.zero(i + 2).reshape(())) for i in (0, 3)]
    first, second = reversed(pairs) if _swapped(pairs[0][0], pairs[1][0]) else pairs
    return first, second


def add(call: Call) -> tuple[Recomputed, ...]:
    """QLinearAdd: `rint(fma(a, r_a, fma(b, r_b, f32(z_c − fma(z_a, r_a, f32(r_b·z_b))))))`, r = s / s_c."""
    (a, scale_a, zero_a), (b, scale_b, zero_b) = _operands(call)
    scale, zero = call.scale(6).reshape(()), call.zero(7).reshape(())
    ratio_a, ratio_b = scale_a / scale, scale_b / scale
    shift = np.float32(float(zero_a) * float(ratio_a) + float(np.float32(ratio_b * np.float32(zero_b))))
    fixed = float(np.float32(zero) - shift)
    # A product of two float32 is exact in float64, so that each line rounds once, as a fused multiply-add does.
    inner = (b.astype(np.float64) * float(ratio_b) + fixed).astype(np.float32)
    total = (a.astype(np.float64) * float(ratio_a) + inner.astype(np.float64)).astype(np.float32)
    return (Recomputed(saturated(total, np.zeros((), np.int64), call.kind)),)


def multiply(call: Call) -> tuple[Recomputed, ...]:
    """QLinearMul: `rint(f32(f32((a − z_a)·(b − z_b)·m) + z_c))`, m = f32(f32(s_a·s_b) / s_c)."""
    (a, scale_a, zero_a), (b, scale_b, zero_b) = _operands(call)
    product = ((a.astype(np.int64) - zero_a) * (b.astype(np.int64) - zero_b)).astype(np.float32)
    multiplier = np.float32(scale_a * scale_b) / call.scale(6).reshape(())
    shifted = product * multiplier + np.float32(call.zero(7).reshape(()))
    return (Recomputed(saturated(shifted, np.zeros((), np.int64), call.kind)),)


def table(function: Callable[[Call, Floats], Floats]) -> Callable[[Call], tuple[Recomputed, ...]]:
    """Return a function of one value: dequantize, compute, quantize."""

    def run(call: Call) -> tuple[Recomputed, ...]:
        real = (call.at(0).astype(np.int64) - call.zero(2)).astype(np.float32) * call.scale(1)
        return (Recomputed(saturated(function(call, real) / call.scale(3), call.zero(4), call.kind)),)

    return run


def sigmoid(_call: Call, x: Floats) -> Floats:
    """`1 / (1 + exp(−x))`, rounded once."""
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def leaky_relu(call: Call, x: Floats) -> Floats:
    """`x` if not negative, else `alpha · x`."""
    return np.where(x >= 0, x, x * np.float32(call.attributes.get("alpha", 0.01)))


def _rescaled(codes: Array, scale: Floats, zero: Array, call: Call, to: Floats, zero_to: Array) -> Array:
    if scale == to and zero == zero_to:
        return codes
    real = (codes.astype(np.int64) - zero).astype(np.float32) * scale
    return saturated(real / to, zero_to, call.kind)


def concat(call: Call) -> tuple[Recomputed, ...]:
    """QLinearConcat: each input through the table `rint(f32((x − z)·s) / s_y) + z_y`."""
    scale, zero = call.scale(0).reshape(()), call.zero(1).reshape(())
    parts = [
        _rescaled(call.at(i), call.scale(i + 1).reshape(()), call.zero(i + 2).reshape(()), call, scale, zero)
        for i in range(2, len(call.node.input), 3)
    ]
    return (Recomputed(np.concatenate(parts, axis=int(call.attributes["axis"]))),)


def where(call: Call) -> tuple[Recomputed, ...]:
    """QLinearWhere: as QLinearConcat, then the choice."""
    scale, zero = call.scale(7).reshape(()), call.zero(8).reshape(())
    parts = [
        _rescaled(call.at(i), call.scale(i + 1).reshape(()), call.zero(i + 2).reshape(()), call, scale, zero)
        for i in (1, 4)
    ]
    return (Recomputed(np.where(call.at(0), *parts)),)
