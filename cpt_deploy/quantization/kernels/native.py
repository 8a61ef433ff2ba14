"""The backend of compiled C kernels for the CPU, called through ctypes with pointers to dense tensors."""

import ctypes
from ctypes import Structure, c_float, c_int, c_int64, c_uint32, c_void_p
from typing import Any

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import parameters
from cpt_deploy.quantization.kernels.interface import (
    AccumulatorScale,
    Average,
    BatchNorm,
    Clamp,
    GradientTerms,
    Normalised,
    Observed,
    OutputGradient,
    QuantizationParameters,
    QuantMax,
    Statistics,
)
from cpt_deploy.quantization.kernels.layout import aligned, channels_of, dense


class _QuantizationParameters(Structure):
    _fields_ = (("scale", c_float), ("zero_point", c_float), ("levels", c_float))


class _Clamp(Structure):
    _fields_ = (("low", c_float), ("high", c_float))


class _Site(Structure):
    _fields_ = (
        ("g", c_void_p), ("x", c_void_p), ("factor", c_void_p), ("offset", c_void_p), ("clamp", _Clamp),
        ("rows", c_int64), ("channels", c_int64),
    )  # fmt: skip


class _Terms(Structure):
    _fields_ = (("p", c_void_p), ("q", c_void_p), ("r", c_void_p))


class _Average(Structure):
    _fields_ = (("low", c_void_p), ("high", c_void_p), ("batches", c_void_p), ("momentum", c_float))


class _Statistics(Structure):
    _fields_ = (("mean", c_void_p), ("variance", c_void_p), ("least", c_void_p), ("greatest", c_void_p))


class _BatchNorm(Structure):
    _fields_ = (
        ("weight", c_void_p), ("bias", c_void_p), ("running_mean", c_void_p), ("running_variance", c_void_p),
        ("batches", c_void_p), ("momentum", c_float), ("eps", c_float),
    )  # fmt: skip


_P, _N, _I, _F = c_void_p, c_int64, c_int, c_float
_SITE, _TERMS, _AVERAGE, _STATISTICS, _NORM = (
    ctypes.POINTER(structure) for structure in (_Site, _Terms, _Average, _Statistics, _BatchNorm)
)

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "range": (_P, _N, _P, _I),
    "quantize": (_P, _N, _QuantizationParameters, _P, _I),
    "requantize": (_P, _N, _QuantizationParameters, _QuantizationParameters, _P, _I),
    "centre": (_P, _N, _F, _P, _I, _I),
    "dequantize": (_P, _N, _QuantizationParameters, _P, _I),
    "quantize_weight": (_P, _N, _N, _P, _N, _P, _P, _I),
    "real_weight": (_P, _N, _N, _P, _P, _P, _I, _I),
    "add_range": (_P, _P, _N, _QuantizationParameters, _QuantizationParameters, _Clamp, _P, _I),
    "add_quantize": (
        _P,
        _P,
        _N,
        _QuantizationParameters,
        _QuantizationParameters,
        _Clamp,
        _QuantizationParameters,
        _P,
        _P,
        _I,
    ),
    "mask": (_P, _P, _N, _P, _I, _I),
    "statistics": (_P, _N, _N, _P, _P, _P, _P, _I),
    "affine_quantize": (_P, _N, _N, _P, _P, _Clamp, _QuantizationParameters, _P, _I),
    "scale_sums": (_P, _N, _N, _P, _P, _P, _P, _I),
    "gradient_sums": (_SITE, _P, _P, _P, _I, _I),
    "gradient_range": (_SITE, _TERMS, _P, _I, _I),
    "gradient_codes": (_SITE, _TERMS, _F, c_uint32, _P, _I, _I, _I),
    "round_gradient": (_P, _N, _F, c_uint32, _P, _I),
    "observe": (_P, _P, _AVERAGE, _P, _P, _F, _I, _P, _I),
    "gradient_step": (_P, _P, _P, _P, _I),
    "normalise": (_STATISTICS, _P, _P, _P, _NORM, _Clamp, _N, _N, _P, _P, _I),
    "normalisation_terms": (_P, _P, _P, _P, _P, _N, _N, _P, _I),
}


#: Return values of kernels, as `Status` in kernels.h.
_OK, _OUT_OF_MEMORY, _EMPTY = 0, 1, 2


class NativeKernels:
    """Calls one function of a shared object per kernel, on as many threads as torch uses.

    Args:
        library: The shared object.
        level: Its name: the instruction set.

    Raises:
        ValueError: If the result is undefined for an empty tensor (a range, statistics) and the tensor is empty.
        MemoryError: If a kernel cannot allocate its temporary memory.
    """

    scale = staticmethod(parameters.scale)

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.name = f"native, {level}"
        self._functions = {}
        for name, arguments in _ARGUMENTS.items():
            function = library[f"cpt_{name}"]
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function

    def _call(self, function: str, *arguments: Any) -> None:
        status = self._functions[function](*arguments, torch.get_num_threads())
        if status == _EMPTY:
            raise ValueError(f"Expected at least one element in the kernel {function!r}, but got none")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"Expected memory for the sums of the kernel {function!r}, but there is none left")
        assert status == _OK, (function, status)

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return min and max."""
        x, found = dense(x), torch.empty(2)
        self._call("range", x.data_ptr(), x.numel(), found.data_ptr())
        return found[0], found[1]

    def quantize(self, x: Tensor, qparams: QuantizationParameters) -> Tensor:
        """Return quantized values."""
        x = dense(x)
        codes = _codes_like(x)
        self._call("quantize", x.data_ptr(), x.numel(), _qparams(qparams), codes.data_ptr())
        return codes

    def requantize(self, codes: Tensor, source: QuantizationParameters, target: QuantizationParameters) -> Tensor:
        """Return requantized values."""
        out = torch.empty_like(codes)
        self._call("requantize", codes.data_ptr(), codes.numel(), _qparams(source), _qparams(target), out.data_ptr())
        return out

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes − zero_point`."""
        out = torch.empty_like(codes, dtype=dtype)
        self._call("centre", codes.data_ptr(), codes.numel(), zero_point.item(), out.data_ptr(), _is_bf16(out))
        return out

    def dequantize(self, codes: Tensor, qparams: QuantizationParameters) -> Tensor:
        """Return real values."""
        out = torch.empty_like(codes, dtype=torch.float32)
        self._call("dequantize", codes.data_ptr(), codes.numel(), _qparams(qparams), out.data_ptr())
        return out

    def quantize_weight(self, weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantized values and scales."""
        weight, count = dense(weight.detach()), weight.shape[0]
        codes, scales = torch.empty_like(weight, dtype=torch.int8), torch.empty(count)
        inputs, stride = weight[0].numel() if count else 0, quant_max.stride(0) if quant_max.dim() else 0
        self._call(
            "quantize_weight",
            weight.data_ptr(), count, inputs, quant_max.data_ptr(), stride, codes.data_ptr(), scales.data_ptr(),
        )  # fmt: skip
        return codes, scales

    def real_weight(self, codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes · (scales · step)`."""
        out, count = torch.empty_like(codes, dtype=dtype), len(codes)
        pointers = (tensor.data_ptr() for tensor in (scales, step, out))
        inputs = codes[0].numel() if count else 0
        self._call("real_weight", codes.data_ptr(), count, inputs, *pointers, _is_bf16(out))
        return out

    def add_range(
        self, a: Tensor, b: Tensor, qparams_each: tuple[QuantizationParameters, QuantizationParameters], clamp: Clamp
    ) -> tuple[Tensor, Tensor]:
        """Return the range of a clamped sum."""
        b, found = aligned(b, a), torch.empty(2)
        self._call(
            "add_range",
            a.data_ptr(), b.data_ptr(), a.numel(), *map(_qparams, qparams_each), _Clamp(*clamp), found.data_ptr(),
        )  # fmt: skip
        return found[0], found[1]

    def add_quantize(
        self,
        a: Tensor,
        b: Tensor,
        qparams_each: tuple[QuantizationParameters, QuantizationParameters],
        clamp: Clamp,
        qparams: QuantizationParameters,
    ) -> tuple[Tensor, Tensor]:
        """Return a quantized clamped sum and its mask."""
        b, codes = aligned(b, a), torch.empty_like(a)
        passed = torch.empty((a.numel() + 7) // 8, dtype=torch.uint8)
        self._call(
            "add_quantize",
            a.data_ptr(), b.data_ptr(), a.numel(), *map(_qparams, qparams_each), _Clamp(*clamp), _qparams(qparams),
            codes.data_ptr(), passed.data_ptr(),
        )  # fmt: skip
        return codes, passed

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        """Return a masked gradient."""
        out = torch.empty_like(gradient)
        self._call("mask", gradient.data_ptr(), passed.data_ptr(), gradient.numel(), out.data_ptr(), _is_bf16(gradient))
        return out

    def statistics(self, x: Tensor) -> Statistics:
        """Return statistics of each channel, from sums relative to its first value."""
        channels, rows = _channels_and_rows(x)
        found = torch.empty(4, channels).unbind()
        self._call("statistics", x.data_ptr(), rows, channels, *(tensor.data_ptr() for tensor in found))
        return Statistics(*found)

    def affine_quantize(
        self, x: Tensor, factor: Tensor, offset: Tensor, clamp: Clamp, qparams: QuantizationParameters
    ) -> Tensor:
        """Return quantized values of a clamped affine function."""
        channels, rows = _channels_and_rows(x)
        codes = _codes_like(x)
        self._call(
            "affine_quantize",
            x.data_ptr(), rows, channels, factor.data_ptr(), offset.data_ptr(), _Clamp(*clamp), _qparams(qparams),
            codes.data_ptr(),
        )  # fmt: skip
        return codes

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        """Return `(sums + shift) · factor + offset`."""
        if shift is None:
            along = (1, -1, 1, 1) if sums.dim() == 4 else (-1,)
            return (sums.to(torch.float32) * factor.view(along)).add_(offset.view(along))
        channels, rows = _channels_and_rows(sums)
        out = torch.empty_like(sums, dtype=torch.float32)
        pointers = (tensor.data_ptr() for tensor in (shift, factor, offset, out))
        self._call("scale_sums", sums.data_ptr(), rows, channels, *pointers)
        return out

    def gradient_sums(self, site: OutputGradient, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums for the backward pass of a normalisation."""
        passed, products = torch.empty(2, channels_of(site.x)).unbind()
        pointers = (tensor.data_ptr() for tensor in (mean, passed, products))
        self._call("gradient_sums", _site(site), *pointers, _is_bf16(site.gradient))
        return passed, products

    def gradient_range(self, site: OutputGradient, terms: GradientTerms) -> tuple[Tensor, Tensor]:
        """Return the range of the gradient of a layer's output."""
        found = torch.empty(2)
        self._call("gradient_range", _site(site), _terms(terms), found.data_ptr(), _is_bf16(site.gradient))
        return found[0], found[1]

    def gradient_codes(
        self, site: OutputGradient, terms: GradientTerms, step: Tensor, seed: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Return the gradient of a layer's output in steps, rounded stochastically."""
        codes = torch.empty_like(site.gradient, dtype=dtype)
        types = (_is_bf16(site.gradient), _is_bf16(codes))
        noise = (step.item(), int(seed) & 0xFFFFFFFF)
        self._call("gradient_codes", _site(site), _terms(terms), *noise, codes.data_ptr(), *types)
        return codes

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        """Return a gradient rounded stochastically."""
        gradient = dense(gradient)
        out = torch.empty_like(gradient)
        noise = (step.item(), int(seed) & 0xFFFFFFFF)
        self._call("round_gradient", gradient.data_ptr(), gradient.numel(), *noise, out.data_ptr())
        return out

    def observe(self, low: Tensor, high: Tensor, average: Average | None, quant_max: QuantMax) -> Observed:
        """Return a range with its quantization parameters."""
        (low, high), out = parameters.whole(low, high), torch.empty(8)
        pointers = (tensor.data_ptr() for tensor in (low, high))
        moved = None if average is None else _Average(*(tensor.data_ptr() for tensor in average[:3]), average.momentum)
        most = (quant_max.own.data_ptr(), quant_max.cycle.data_ptr(), quant_max.least)
        self._call("observe", *pointers, moved, *most, quant_max.symmetric, out.data_ptr())
        bottom, top, *qparams_each = out.unbind()
        return Observed(
            bottom, top, QuantizationParameters(*qparams_each[:3]), QuantizationParameters(*qparams_each[3:])
        )

    def gradient_step(self, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
        """Return the quantization step of a gradient."""
        (low, high), step = parameters.whole(low, high), torch.empty(())
        self._call("gradient_step", *(tensor.data_ptr() for tensor in (low, high, quant_max, step)))
        return step

    def normalise(
        self,
        statistics: Statistics,
        unit: AccumulatorScale,
        bias: Tensor | None,
        norm: BatchNorm | None,
        clamp: Clamp,
        count: int,
    ) -> tuple[Normalised, tuple[Tensor, Tensor]]:
        """Return a layer's normalisation and its output's range, and update the running averages of the BatchNorm."""
        channels = len(unit.weight)
        out, ends = torch.empty(5, channels), torch.empty(2)
        sums = _Statistics(*(tensor.data_ptr() for tensor in statistics))
        pointers = (*(tensor.data_ptr() for tensor in unit), None if bias is None else bias.data_ptr())
        replayed = _BatchNorm() if norm is None else _BatchNorm(*(tensor.data_ptr() for tensor in norm[:5]), *norm[5:])
        sizes = (count, channels)
        self._call("normalise", sums, *pointers, replayed, _Clamp(*clamp), *sizes, out.data_ptr(), ends.data_ptr())
        return Normalised(*out.unbind()), (ends[0], ends[1])

    def normalisation_terms(
        self, norm: Normalised, passed: Tensor, products: Tensor, count: int
    ) -> tuple[GradientTerms, Tensor]:
        """Return the coefficients of the gradient through BatchNorm, see `parameters.terms`, and the gradient of γ."""
        channels = len(passed)
        out = torch.empty(3, channels)
        read = (norm.mean, norm.gain, norm.deviation, passed, products)
        self._call("normalisation_terms", *(tensor.data_ptr() for tensor in read), count, channels, out.data_ptr())
        q, r, grad_gamma = out.unbind()
        return GradientTerms(norm.gain, q, r), grad_gamma


def _codes_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


def _qparams(qparams: QuantizationParameters) -> _QuantizationParameters:
    return _QuantizationParameters(qparams.scale.item(), qparams.zero_point.item(), qparams.quant_max.item())


def _site(site: OutputGradient) -> _Site:
    channels, rows = _channels_and_rows(site.x)
    pointers = (tensor.data_ptr() for tensor in site[:4])
    return _Site(*pointers, _Clamp(*site.clamp), rows, channels)


def _terms(terms: GradientTerms) -> _Terms:
    return _Terms(*(tensor.data_ptr() for tensor in terms))


def _channels_and_rows(x: Tensor) -> tuple[int, int]:
    channels = channels_of(x)
    return channels, x.numel() // channels if channels else 0


def _is_bf16(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
