"""Convolutions and products of integers, in the exact arithmetic of onnxruntime's kernels.

Sums are exact: float64 holds integers up to 2^53.
"""

import numpy as np

from cpt_deploy.validation.onnx_files.kernels.calls import (
    Array,
    Call,
    Floats,
    Recomputed,
    along,
    geometry,
    requantized,
    saturated,
)
from cpt_deploy.validation.onnx_files.kernels.quantizers import dynamic_parameters


def _convolved(call: Call, x: Array, weight: Array) -> Array:
    """Return the exact sums of a convolution of integers without their zero points, channels second, int64."""
    import torch

    dimensions = weight.ndim - 2
    pads, strides, dilations = geometry(call.attributes, x.shape[2:], weight.shape[2:])
    padded = np.pad(x, [(0, 0), (0, 0), *pads]).astype(np.float64)
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[dimensions]
    sums = function(
        torch.from_numpy(padded),
        torch.from_numpy(weight.astype(np.float64)),
        None,
        strides,
        0,
        dilations,
        int(call.attributes.get("group", 1)),
    )
    result: Array = sums.numpy().astype(np.int64)
    return result


def conv(call: Call) -> tuple[Recomputed, ...]:
    """QLinearConv: `rint(clamp(f32(acc)·m)) + z_y`, m = f32(f32(s_x·s_w) / s_y); acc includes the int32 bias."""
    last = bool(call.attributes.get("channels_last", 0))
    x, weight = call.at(0), call.at(3)
    codes = np.moveaxis(x, -1, 1) if last else x
    sums = _convolved(
        call, codes.astype(np.int64) - call.zero(2), weight.astype(np.int64) - along(call.zero(5), weight.ndim, 0)
    )
    bias = call.get(8)
    if bias is not None:
        sums += along(bias.astype(np.int64), sums.ndim, 1)
    multiplier = np.float32(call.scale(1) * call.scale(4)) / call.scale(6)
    made = requantized(sums, along(multiplier, sums.ndim, 1), call.zero(7), call.kind)
    return (Recomputed(np.moveaxis(made, 1, -1) if last else made),)


def conv_integer(call: Call) -> tuple[Recomputed, ...]:
    """ConvInteger: the sums, int32."""
    weight = call.at(1)
    zero = along(call.zero(3), weight.ndim, 0)
    sums = _convolved(call, call.at(0).astype(np.int64) - call.zero(2), weight.astype(np.int64) - zero)
    return (Recomputed(sums.astype(np.int32)),)


def _product(a: Array, b: Array) -> Array:
    result: Array = np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)
    return result


def _columns(zero: Array) -> Array:
    """Return zero points of the second factor of a product: one, one of each column, or a matrix with one row."""
    return zero.reshape(()) if zero.size == 1 else zero


def matmul_integer(call: Call) -> tuple[Recomputed, ...]:
    """MatMulInteger: the sums, int32."""
    zero = call.zero(2)
    first = call.at(0).astype(np.int64) - (zero.reshape(-1, 1) if zero.size > 1 else zero.reshape(()))
    return (Recomputed(_product(first, call.at(1).astype(np.int64) - _columns(call.zero(3))).astype(np.int32)),)


def matmul(call: Call) -> tuple[Recomputed, ...]:
    """QLinearMatMul: requantized as QLinearConv."""
    sums = _product(
        call.at(0).astype(np.int64) - call.zero(2).reshape(()), call.at(3).astype(np.int64) - _columns(call.zero(5))
    )
    multiplier = np.float32(_columns(call.scale(1)) * _columns(call.scale(4))) / call.scale(6).reshape(())
    return (Recomputed(requantized(sums, multiplier, call.zero(7).reshape(()), call.kind)),)


def gemm(call: Call) -> tuple[Recomputed, ...]:
    """QGemm: requantized as QLinearConv, or real if the output has no scale."""
    a, b = call.at(0).astype(np.int64) - call.zero(2), call.at(3).astype(np.int64)
    zeros = call.zero(5)
    transposed = bool(call.attributes.get("transB", 0))
    b = (b.T if transposed else b) - _columns(zeros)
    sums = _product(a.T if call.attributes.get("transA", 0) else a, b)
    bias = call.get(6)
    if bias is not None:
        sums += bias.astype(np.int64)
    scale = np.float32(np.float32(call.attributes.get("alpha", 1.0)) * call.scale(1)) * _columns(call.scale(4))
    made = call.get(7)
    if made is None or call.kind == np.float32:
        return (Recomputed(sums.astype(np.float32) * scale, scale),)
    multiplier = np.float32(scale / made.astype(np.float32))
    return (Recomputed(requantized(sums, multiplier, call.zero(8), call.kind)),)


def _real_product(a: Array, zero: Array, b: Array, zeros: Array, scale: Floats, bias: Array | None) -> Recomputed:
    sums = _product(a.astype(np.int64) - zero, b.astype(np.int64) - _columns(zeros))
    real = sums.astype(np.float32) * scale
    return Recomputed(real if bias is None else real + bias, scale)


def matmul_to_float(call: Call) -> tuple[Recomputed, ...]:
    """MatMulIntegerToFloat: `f32(acc) · f32(s_a·s_b) + bias`."""
    scale = np.float32(_columns(call.scale(2)) * _columns(call.scale(3)))
    return (_real_product(call.at(0), call.zero(4), call.at(1), call.zero(5), scale, call.get(6)),)


def matmul_dynamic(call: Call) -> tuple[Recomputed, ...]:
    """DynamicQuantizeMatMul: quantizes its input as DynamicQuantizeLinear; then as MatMulIntegerToFloat."""
    x = call.at(0)
    scale, zero = dynamic_parameters(x)
    codes = saturated(x / scale, zero, np.dtype(np.uint8))
    both = np.float32(scale * _columns(call.scale(2)))
    return (_real_product(codes, zero, call.at(1), call.zero(3), both, call.get(4)),)
