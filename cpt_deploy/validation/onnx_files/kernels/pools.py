"""Pools of integers, in the exact arithmetic of onnxruntime's kernels."""

from typing import Any

import numpy as np

from cpt_deploy.validation.onnx_files.kernels.calls import (
    Array,
    Call,
    Recomputed,
    UnknownArithmeticError,
    geometry,
    requantized,
    saturated,
)


def global_average(call: Call) -> tuple[Recomputed, ...]:
    """QLinearGlobalAveragePool: `rint(acc · f32(s_x / f32(s_y·S))) + z_y` over S positions."""
    codes = call.at(0)
    axes = tuple(range(1, codes.ndim - 1) if call.attributes.get("channels_last", 0) else range(2, codes.ndim))
    positions = int(np.prod([codes.shape[axis] for axis in axes]))
    sums = codes.astype(np.int64).sum(axis=axes, keepdims=True) - positions * call.zero(2)
    multiplier = call.scale(1) / (call.scale(3) * np.float32(positions))
    return (Recomputed(requantized(sums, multiplier, call.zero(4), call.kind)),)


def max_pool(call: Call) -> tuple[Recomputed, ...]:
    """MaxPool of integers, which needs no arithmetic."""
    import torch
    from torch.nn import functional

    last, codes = call.node.op_type == "NhwcMaxPool", call.at(0)
    if codes.dtype.kind not in "iu" or codes.ndim > 5:
        raise UnknownArithmeticError("of real numbers, or of more than three dimensions")
    x = np.moveaxis(codes, -1, 1) if last else codes
    kernel = tuple(call.attributes["kernel_shape"])
    pads, strides, dilations = geometry(call.attributes, x.shape[2:], kernel)
    made = call.values[call.node.output[0]]
    sizes = made.shape[1:-1] if last else made.shape[2:]
    # Windows that only start inside the padded tensor (ceil_mode) see nothing beyond its end.
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
    widths = [(low, max(0, end - low - n)) for (low, _), end, n in zip(pads, reach, x.shape[2:], strict=True)]
    padded = np.pad(x.astype(np.float32), [(0, 0), (0, 0), *widths], constant_values=-np.inf)
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[len(kernel)]
    result: Array = pool(torch.from_numpy(padded), kernel, strides, 0, dilations).numpy()
    inside: tuple[Any, ...] = (..., *(slice(n) for n in sizes))
    result = result[inside].astype(codes.dtype)
    return (Recomputed(np.moveaxis(result, 1, -1) if last else result),)


def average_pool(call: Call) -> tuple[Recomputed, ...]:
    """Average dequantized values in float32; the zero point is added before rounding, which determines ties."""
    last, codes = bool(call.attributes.get("channels_last", 0)), call.at(0)
    x = np.moveaxis(codes, -1, 1) if last else codes
    kernel = tuple(call.attributes["kernel_shape"])
    pads, strides, _ = geometry(call.attributes, x.shape[2:], kernel)
    if len(kernel) != 2 or call.attributes.get("ceil_mode", 0):
        raise UnknownArithmeticError("other windows than of two dimensions, or ceil_mode")
    real = (x.astype(np.int64) - call.zero(2)).astype(np.float32) * call.scale(1)
    padded, inside = (np.pad(part, [(0, 0), (0, 0), *pads]) for part in (real, np.ones_like(real[:1, :1])))
    sizes = [
        (n + low + high - k) // s + 1 for n, (low, high), k, s in zip(x.shape[2:], pads, kernel, strides, strict=True)
    ]
    total, count = np.zeros((*x.shape[:2], *sizes), np.float32), np.zeros((1, 1, *sizes), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            ends = [(n - 1) * step + 1 for n, step in zip(sizes, strides, strict=True)]
            rows, columns = (slice(o, o + end, step) for o, end, step in zip((i, j), ends, strides, strict=True))
            total, count = total + padded[:, :, rows, columns], count + inside[:, :, rows, columns]
    divisor = np.float32(np.prod(kernel)) if call.attributes.get("count_include_pad", 0) else count
    shifted = total / divisor / call.scale(3) + np.float32(call.zero(4))
    made = saturated(shifted, np.zeros((), np.int64), call.kind)
    return (Recomputed(np.moveaxis(made, 1, -1) if last else made),)
