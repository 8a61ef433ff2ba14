"""The C types of the compiled kernels: structures as in kernels.h, and the arguments of each function."""

import ctypes
from ctypes import Structure, c_float, c_int, c_int64, c_uint32, c_void_p
from typing import Any


class QParams(Structure):
    """See `QParams` in kernels.h."""

    _fields_ = (("scale", c_float), ("zero_point", c_float), ("quant_max", c_float))


class Clamp(Structure):
    """See `Clamp` in kernels.h."""

    _fields_ = (("low", c_float), ("high", c_float))


class OutputGradient(Structure):
    """See `OutputGradient` in kernels.h."""

    _fields_ = (
        ("g", c_void_p), ("x", c_void_p), ("factor", c_void_p), ("offset", c_void_p), ("clamp", Clamp),
        ("rows", c_int64), ("channels", c_int64),
    )  # fmt: skip


class Terms(Structure):
    """See `Terms` in kernels.h."""

    _fields_ = (("p", c_void_p), ("q", c_void_p), ("r", c_void_p))


class Average(Structure):
    """See `Average` in kernels.h."""

    _fields_ = (("low", c_void_p), ("high", c_void_p), ("batches", c_void_p), ("momentum", c_float))


class Statistics(Structure):
    """See `Statistics` in kernels.h."""

    _fields_ = (("mean", c_void_p), ("variance", c_void_p), ("low", c_void_p), ("high", c_void_p))


class BatchNorm(Structure):
    """See `BatchNorm` in kernels.h."""

    _fields_ = (
        ("weight", c_void_p), ("bias", c_void_p), ("running_mean", c_void_p), ("running_variance", c_void_p),
        ("batches", c_void_p), ("momentum", c_float), ("eps", c_float),
    )  # fmt: skip


_P, _N, _I, _F = c_void_p, c_int64, c_int, c_float
_OUTPUT, _TERMS, _AVERAGE, _STATISTICS, _NORM = (
    ctypes.POINTER(structure) for structure in (OutputGradient, Terms, Average, Statistics, BatchNorm)
)

#: Types of the arguments of each kernel; the last one is the number of threads.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "range": (_P, _N, _P, _I),
    "quantize": (_P, _N, QParams, _P, _I),
    "requantize": (_P, _N, QParams, QParams, _P, _I),
    "centre": (_P, _N, _F, _P, _I, _I),
    "dequantize": (_P, _N, QParams, _P, _I),
    "quantize_weight": (_P, _N, _N, _P, _N, _P, _P, _I),
    "real_weight": (_P, _N, _N, _P, _P, _P, _I, _I),
    "add_range": (_P, _P, _N, QParams, QParams, Clamp, _P, _I),
    "add_quantize": (_P, _P, _N, QParams, QParams, Clamp, QParams, _P, _P, _I),
    "mask": (_P, _P, _N, _P, _I, _I),
    "statistics": (_P, _N, _N, _P, _P, _P, _P, _I),
    "affine_quantize": (_P, _N, _N, _P, _P, Clamp, QParams, _P, _I),
    "scale_sums": (_P, _N, _N, _P, _P, _P, _P, _I),
    "gradient_sums": (_OUTPUT, _P, _P, _P, _I, _I),
    "gradient_range": (_OUTPUT, _TERMS, _P, _I, _I),
    "gradient_codes": (_OUTPUT, _TERMS, _F, c_uint32, _P, _I, _I, _I),
    "round_gradient": (_P, _N, _F, c_uint32, _P, _I),
    "observe": (_P, _P, _AVERAGE, _P, _P, _F, _I, _P, _I),
    "gradient_step": (_P, _P, _P, _P, _I),
    "normalise": (_STATISTICS, _P, _P, _P, _NORM, Clamp, _N, _N, _P, _P, _I),
    "normalisation_terms": (_P, _P, _P, _P, _P, _N, _N, _P, _I),
}
