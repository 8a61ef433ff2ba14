"""The backend of compiled C kernels for the CPU, called through ctypes with pointers to dense tensors."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import interface as k
from cpt_deploy.quantization.kernels import native_types as c
from cpt_deploy.quantization.kernels import parameters
from cpt_deploy.quantization.kernels.layout import aligned, channels_of, dense

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
        for name, arguments in c.ARGUMENTS.items():
            function = library[f"cpt_{name}"]
            function.argtypes, function.restype = arguments, ctypes.c_int
            self._functions[name] = function

    def _call(self, function: str, *arguments: Any) -> None:
        """Call a kernel; tensors become pointers and named tuples C structures."""
        status = self._functions[function](*map(_converted, arguments), torch.get_num_threads())
        if status == _EMPTY:
            raise ValueError(f"Expected at least one element in the kernel {function!r}, but got none")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"Expected memory for the sums of the kernel {function!r}, but there is none left")
        assert status == _OK, (function, status)

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.empty(2)
        self._call("range", dense(x), x.numel(), found)
        return found[0], found[1]

    def quantize(self, x: Tensor, qparams: k.QuantizationParameters) -> Tensor:
        x = dense(x)
        codes = torch.empty_like(x, dtype=torch.uint8)
        self._call("quantize", x, x.numel(), qparams, codes)
        return codes

    def requantize(self, codes: Tensor, source: k.QuantizationParameters, target: k.QuantizationParameters) -> Tensor:
        out = torch.empty_like(codes)
        self._call("requantize", codes, codes.numel(), source, target, out)
        return out

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(codes, dtype=dtype)
        self._call("centre", codes, codes.numel(), zero_point.item(), out, _is_bf16(out))
        return out

    def dequantize(self, codes: Tensor, qparams: k.QuantizationParameters) -> Tensor:
        out = torch.empty_like(codes, dtype=torch.float32)
        self._call("dequantize", codes, codes.numel(), qparams, out)
        return out

    def quantize_weight(self, weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
        weight, count = dense(weight.detach()), weight.shape[0]
        codes, scales = torch.empty_like(weight, dtype=torch.int8), torch.empty(count)
        inputs, stride = weight[0].numel() if count else 0, quant_max.stride(0) if quant_max.dim() else 0
        self._call("quantize_weight", weight, count, inputs, quant_max, stride, codes, scales)
        return codes, scales

    def real_weight(self, codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        out, inputs = torch.empty_like(codes, dtype=dtype), codes[0].numel() if len(codes) else 0
        self._call("real_weight", codes, len(codes), inputs, scales, step, out, _is_bf16(out))
        return out

    def add_range(self, a: Tensor, b: Tensor, qparams_each: k.Both, clamp: k.Clamp) -> tuple[Tensor, Tensor]:
        b, found = aligned(b, a), torch.empty(2)
        self._call("add_range", a, b, a.numel(), *qparams_each, clamp, found)
        return found[0], found[1]

    def add_quantize(
        self, a: Tensor, b: Tensor, qparams_each: k.Both, clamp: k.Clamp, qparams: k.QuantizationParameters
    ) -> tuple[Tensor, Tensor]:
        b, codes, passed = aligned(b, a), torch.empty_like(a), torch.empty((a.numel() + 7) // 8, dtype=torch.uint8)
        self._call("add_quantize", a, b, a.numel(), *qparams_each, clamp, qparams, codes, passed)
        return codes, passed

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        out = torch.empty_like(gradient)
        self._call("mask", gradient, passed, gradient.numel(), out, _is_bf16(gradient))
        return out

    def statistics(self, x: Tensor) -> k.Statistics:
        rows, channels = _rows_and_channels(x)
        found = k.Statistics(*torch.empty(4, channels).unbind())
        self._call("statistics", x, rows, channels, *map(Tensor.data_ptr, found))
        return found

    def affine_quantize(
        self, x: Tensor, factor: Tensor, offset: Tensor, clamp: k.Clamp, qparams: k.QuantizationParameters
    ) -> Tensor:
        codes = torch.empty_like(x, dtype=torch.uint8)
        self._call("affine_quantize", x, *_rows_and_channels(x), factor, offset, clamp, qparams, codes)
        return codes

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        if shift is None:
            along = (1, -1, 1, 1) if sums.dim() == 4 else (-1,)
            return (sums.to(torch.float32) * factor.view(along)).add_(offset.view(along))
        out = torch.empty_like(sums, dtype=torch.float32)
        self._call("scale_sums", sums, *_rows_and_channels(sums), shift, factor, offset, out)
        return out

    def gradient_sums(self, output: k.OutputGradient, mean: Tensor) -> tuple[Tensor, Tensor]:
        passed, products = torch.empty(2, channels_of(output.x)).unbind()
        self._call("gradient_sums", output, mean, passed, products, _is_bf16(output.gradient))
        return passed, products

    def gradient_range(self, output: k.OutputGradient, terms: k.GradientTerms) -> tuple[Tensor, Tensor]:
        found = torch.empty(2)
        self._call("gradient_range", output, terms, found, _is_bf16(output.gradient))
        return found[0], found[1]

    def gradient_codes(
        self, output: k.OutputGradient, terms: k.GradientTerms, step: Tensor, seed: Tensor, dtype: torch.dtype
    ) -> Tensor:
        codes = torch.empty_like(output.gradient, dtype=dtype)
        types = (_is_bf16(output.gradient), _is_bf16(codes))
        self._call("gradient_codes", output, terms, step.item(), int(seed) & 0xFFFFFFFF, codes, *types)
        return codes

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        gradient = dense(gradient)
        out = torch.empty_like(gradient)
        self._call("round_gradient", gradient, gradient.numel(), step.item(), int(seed) & 0xFFFFFFFF, out)
        return out

    def observe(self, low: Tensor, high: Tensor, average: k.Average | None, quant_max: k.QuantMax) -> k.Observed:
        (low, high), out = parameters.whole(low, high), torch.empty(8)
        self._call("observe", low, high, average, *quant_max, out)
        bottom, top, *each = out.unbind()
        return k.Observed(bottom, top, k.QuantizationParameters(*each[:3]), k.QuantizationParameters(*each[3:]))

    def gradient_step(self, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
        (low, high), step = parameters.whole(low, high), torch.empty(())
        self._call("gradient_step", low, high, quant_max, step)
        return step

    def normalise(
        self,
        statistics: k.Statistics,
        unit: k.AccumulatorScale,
        bias: Tensor | None,
        norm: k.BatchNorm | None,
        clamp: k.Clamp,
        count: int,
    ) -> tuple[k.Normalised, tuple[Tensor, Tensor]]:
        out, ends = torch.empty(5, len(unit.weight)), torch.empty(2)
        following = c.BatchNorm() if norm is None else norm
        self._call("normalise", statistics, *unit, bias, following, clamp, count, len(unit.weight), out, ends)
        return k.Normalised(*out.unbind()), (ends[0], ends[1])

    def normalisation_terms(
        self, norm: k.Normalised, passed: Tensor, products: Tensor, count: int
    ) -> tuple[k.GradientTerms, Tensor]:
        out = torch.empty(3, len(passed))
        read = (norm.mean, norm.gain, norm.deviation, passed, products)
        self._call("normalisation_terms", *read, count, len(passed), out)
        q, r, grad_gamma = out.unbind()
        return k.GradientTerms(norm.gain, q, r), grad_gamma


_STRUCTURES = {
    k.Clamp: c.Clamp, k.GradientTerms: c.Terms, k.Statistics: c.Statistics, k.Average: c.Average,
    k.BatchNorm: c.BatchNorm,
}  # fmt: skip


def _converted(value: Any) -> Any:
    """Return an argument of a kernel as ctypes takes it."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, k.QuantizationParameters):
        return c.QParams(*(number.item() for number in value))
    if isinstance(value, k.OutputGradient):
        return c.OutputGradient(*map(_converted, value), *_rows_and_channels(value.x))
    structure = _STRUCTURES.get(type(value))
    return value if structure is None else structure(*map(_converted, value))


def _rows_and_channels(x: Tensor) -> tuple[int, int]:
    channels = channels_of(x)
    return x.numel() // channels if channels else 0, channels


def _is_bf16(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
