"""Exact integer products of a Linear on a CPU, in int8 or float32, whichever is faster for the shape.

int8 units add in 32 bits; float32 adds integers exactly up to 2^24. Where no sum can exceed 2^24, both give the same
bits: the first product of a shape is timed on both, alternating, and the faster one computes all later products. So the
results of a run do not depend on the choice. Where a sum may exceed 2^24, int8 computes the product.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import Kernels, QuantizationParameters

Unit = Literal["int8", "float32"]

#: Maximum number of rows for which the sums of a weight gradient's products fit into 32 bits.
MAX_ROWS = (2**31 - 1) // 255**2
_EXACT_IN_FLOAT32 = 2**24
_MAX_CODE, _MAX_WEIGHT = 255, 127
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of timing both units on a shape.

    Args:
        unit: The faster unit.
        seconds: Minimum time of each; empty if only int8 is exact.
    """

    unit: Unit
    seconds: Mapping[Unit, float] = field(default_factory=dict)


_trials: dict[tuple[str | int, ...], Trial] = {}


def forward(
    codes: Tensor, qparams: QuantizationParameters, weight: Tensor, kernels: Kernels, factor: Tensor, offset: Tensor
) -> Tensor:
    """Return `(Σ (code − zero_point) · weight) · factor + offset`, float32, of shape (..., O).

    Args:
        codes: Quantized values of the input, uint8, (..., I).
        qparams: Their quantization parameters.
        weight: Quantized values of the weight, int8, (O, I).
        kernels: Backend.
        factor: (O,) float32.
        offset: (O,) float32.
    """

    def by_int8() -> Tensor:
        product = torch._int_mm(_signed(codes.reshape(-1, codes.shape[-1])), _transposed(weight))
        shift = (128 - integer(qparams.zero_point)) * weight.sum(dim=1, dtype=torch.int32)
        return kernels.scale_sums(product, shift, factor, offset).view(*codes.shape[:-1], -1)

    def by_float32() -> Tensor:
        sums = kernels.centre(codes, qparams.zero_point, torch.float32) @ weight.float().t()
        return sums.mul_(factor).add_(offset)

    shape = (codes.numel() // codes.shape[-1], codes.shape[-1], len(weight))
    if shape[1] * _MAX_CODE * _MAX_WEIGHT > _EXACT_IN_FLOAT32:
        return by_int8()
    return _faster("forward", shape, {"int8": by_int8, "float32": by_float32})


def weight_gradient(gradient: Tensor, codes: Tensor, qparams: QuantizationParameters, kernels: Kernels) -> Tensor:
    """Return `gradientᵀ · (codes − zero_point)`, (O, I) float32, for at most `MAX_ROWS` rows.

    Args:
        gradient: Integers of at most 8 bits in float32 or bfloat16, (rows, O).
        codes: Quantized values of the input, uint8, (rows, I).
        qparams: Their quantization parameters.
        kernels: Backend.
    """

    def by_int8() -> Tensor:
        return _int8_weight_gradient(gradient, codes, integer(qparams.zero_point))

    def by_float32() -> Tensor:
        return gradient.float().t() @ kernels.centre(codes, qparams.zero_point, torch.float32)

    shape = (len(codes), codes.shape[1], gradient.shape[1])
    if shape[0] * _MAX_CODE**2 > _EXACT_IN_FLOAT32:
        return by_int8()
    return _faster("weight gradient", shape, {"int8": by_int8, "float32": by_float32})


def trial_of(rows: int, inputs: int, outputs: int, kernels: Kernels) -> Trial:
    """Time a forward product of a shape on zeros, and return the result; all its sums must be exact in float32."""
    codes = torch.zeros(rows, inputs, dtype=torch.uint8)
    qparams = QuantizationParameters(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(255.0))
    weight = torch.zeros(outputs, inputs, dtype=torch.int8)
    forward(codes, qparams, weight, kernels, torch.ones(outputs), torch.zeros(outputs))
    return _trials[_key("forward", (rows, inputs, outputs))]


def _key(product: str, shape: tuple[int, int, int]) -> tuple[str | int, ...]:
    """Return the key of a trial; numbers of rows up to the next power of two share one."""
    rows, inputs, outputs = shape
    return product, (rows - 1).bit_length(), inputs, outputs, torch.get_num_threads()


def _faster(product: str, shape: tuple[int, int, int], makers: Mapping[Unit, Callable[[], Tensor]]) -> Tensor:
    key = _key(product, shape)
    if key in _trials:
        return makers[_trials[key].unit]()
    result = makers["int8"]()
    if not torch.equal(result, makers["float32"]()):  # not computed as sums of products, or NaN
        _trials[key] = Trial("int8")
        return result
    seconds = {unit: float("inf") for unit in makers}
    for _ in range(_ROUNDS):
        for unit, make in makers.items():
            start = time.perf_counter()
            make()
            seconds[unit] = min(seconds[unit], time.perf_counter() - start)
    _trials[key] = Trial(min(seconds, key=seconds.__getitem__), seconds)
    return result


def _int8_weight_gradient(rows: Tensor, codes: Tensor, zero_point: int) -> Tensor:
    """Return `rowsᵀ · (codes − zero_point)`, (O, I): operands shifted into int8, the shifts corrected in 32 bits."""
    shift = int(rows.min().nan_to_num()) + 128
    left, right = (rows - shift).to(torch.int8), _signed(codes)
    ones = torch.ones(8, len(rows), dtype=torch.int8)
    back = 128 - zero_point
    product = torch._int_mm(_transposed(left), right)
    product += back * torch._int_mm(ones, left)[0].unsqueeze(1) + shift * torch._int_mm(ones, right)[0]
    return product.add_(len(rows) * shift * back).float()


def _transposed(x: Tensor) -> Tensor:
    """Return a matrix's transpose; torch._int_mm reads that of a single column wrong, as its strides are ambiguous."""
    return x.t() if x.shape[1] > 1 else x.reshape(1, -1)


def _signed(codes: Tensor) -> Tensor:
    """Return uint8 values as int8, minus 128."""
    return (codes ^ 128).view(torch.int8)


def integer(zero_point: Tensor) -> int:
    """Return a zero point as a number; with a NaN in the tensor any value will do, since the scale is NaN."""
    value = float(zero_point)
    return int(value) if value == value else 0  # noqa: PLR0124
