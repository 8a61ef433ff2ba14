"""Quantizers and dequantizers, in the exact arithmetic of onnxruntime's kernels."""

import numpy as np

from cpt_deploy.validation.onnx_files.kernels.calls import (
    Array,
    Call,
    Floats,
    Recomputed,
    UnknownArithmeticError,
    along,
    saturated,
)


def quantize(call: Call) -> tuple[Recomputed, ...]:
    """QuantizeLinear: `rint(x / s) + z`, true division."""
    x, axis = call.at(0), int(call.attributes.get("axis", 1))
    if call.attributes.get("block_size") or x.dtype != np.float32 or call.kind.kind not in "iu":
        raise UnknownArithmeticError(_form(call, x))
    scale, zero = along(call.scale(1), x.ndim, axis), along(call.zero(2), x.ndim, axis)
    return (Recomputed(saturated((x / scale).astype(np.float32), zero, call.kind)),)


def dequantize(call: Call) -> tuple[Recomputed, ...]:
    """DequantizeLinear: `f32(q − z) · s`."""
    codes, axis = call.at(0), int(call.attributes.get("axis", 1))
    if call.attributes.get("block_size") or call.kind != np.float32 or codes.dtype.kind not in "iu":
        raise UnknownArithmeticError(_form(call, codes))
    scale, zero = along(call.scale(1), codes.ndim, axis), along(call.zero(2), codes.ndim, axis)
    return (Recomputed((codes.astype(np.int64) - zero).astype(np.float32) * scale, scale),)


def _form(call: Call, given: Array) -> str:
    return "scales per block" if call.attributes.get("block_size") else f"from {given.dtype} to {call.kind}"


def dynamic_parameters(x: Floats) -> tuple[Floats, Array]:
    """Return scale (float32) and zero point of the range of a tensor, which includes 0, on 8 bits."""
    least, greatest = np.float32(min(x.min(initial=0), 0)), np.float32(max(x.max(initial=0), 0))
    scale = np.float32(1) if least == greatest else np.float32((greatest - least) / np.float32(255))
    zero = np.rint(np.clip(np.float32(0) - least / scale, 0, 255))
    return np.asarray(scale, np.float32), np.asarray(zero, np.int64)


def quantize_dynamic(call: Call) -> tuple[Recomputed, ...]:
    """DynamicQuantizeLinear: integers, scale and zero point."""
    x = call.at(0)
    scale, zero = dynamic_parameters(x)
    codes = saturated((x / scale).astype(np.float32), zero, np.dtype(np.uint8))
    return Recomputed(codes), Recomputed(scale, scale), Recomputed(zero.astype(np.uint8))
