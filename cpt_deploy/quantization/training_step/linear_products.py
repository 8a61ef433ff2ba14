"""A Linear's products of codes on a CPU: exact integers, of the unit that is faster on the shape at hand.

int8 units add in 32 bits. float32 adds integers exactly up to 2^24; where no sum can go beyond that both give the same
bits, so there the first product of a shape is made by both, in turns, and the faster unit makes all others. What a run
computes does not depend on which that is. Where a sum may go beyond 2^24, the product is int8's.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import Kernels, QuantizationParameters

Unit = Literal["int8", "float32"]

#: Above so many rows the sum of a weight gradient's products may leave 32 bits.
MOST_ROWS = (2**31 - 1) // 255**2
_EXACT_IN_FLOAT32 = 2**24
_GREATEST_CODE, _GREATEST_WEIGHT = 255, 127
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying the units on a shape.

    Args:
        unit: The faster one.
        seconds: The least time that each took; empty if only int8 is exact.
    """

    unit: Unit
    seconds: Mapping[Unit, float] = field(default_factory=dict)


_trials: dict[tuple[str | int, ...], Trial] = {}


def forward(
    codes: Tensor, qparams: QuantizationParameters, weight: Tensor, kernels: Kernels, factor: Tensor, offset: Tensor
) -> Tensor:
    """Return `(Σ (code − zero_point) · weight) · factor + offset`, float32, of shape (..., O).

    Args:
        codes: uint8, (..., I).
        qparams: Theirs.
        weight: Codes, int8, (O, I).
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
    if shape[1] * _GREATEST_CODE * _GREATEST_WEIGHT > _EXACT_IN_FLOAT32:
        return by_int8()
    return _faster("forward", shape, {"int8": by_int8, "float32": by_float32})


def weight_gradient(gradient: Tensor, codes: Tensor, qparams: QuantizationParameters, kernels: Kernels) -> Tensor:
    """Return `gradientᵀ · (codes − zero_point)`, (O, I) float32, of at most `MOST_ROWS` rows.

    Args:
        gradient: Integers of at most 8 bits in float32 or bfloat16, (rows, O).
        codes: uint8, (rows, I).
        qparams: Theirs.
        kernels: Backend.
    """

    def by_int8() -> Tensor:
        return _int8_weight_gradient(gradient, codes, integer(qparams.zero_point))

    def by_float32() -> Tensor:
        return gradient.float().t() @ kernels.centre(codes, qparams.zero_point, torch.float32)

    shape = (len(codes), codes.shape[1], gradient.shape[1])
    if shape[0] * _GREATEST_CODE**2 > _EXACT_IN_FLOAT32:
        return by_int8()
    return _faster("weight gradient", shape, {"int8": by_int8, "float32": by_float32})


def trial_of(rows: int, inputs: int, outputs: int, kernels: Kernels) -> Trial:
    """Try a forward product of a shape on zeros and return what came of it; no sum may be able to leave float32."""
    codes = torch.zeros(rows, inputs, dtype=torch.uint8)
    qparams = QuantizationParameters(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(255.0))
    weight = torch.zeros(outputs, inputs, dtype=torch.int8)
    forward(codes, qparams, weight, kernels, torch.ones(outputs), torch.zeros(outputs))
    return _trials[_key("forward", (rows, inputs, outputs))]


def _key(product: str, shape: tuple[int, int, int]) -> tuple[str | int, ...]:
    """Return what a trial is known by; numbers of rows up to the next power of two share one."""
    rows, inputs, outputs = shape
    return product, (rows - 1).bit_length(), inputs, outputs, torch.get_num_threads()


def _faster(product: str, shape: tuple[int, int, int], makers: Mapping[Unit, Callable[[], Tensor]]) -> Tensor:
    key = _key(product, shape)
    if key in _trials:
        return makers[_trials[key].unit]()
    result = makers["int8"]()
    if not torch.equal(result, makers["float32"]()):  # another algorithm than sums of products, or not a number
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
    """Return `rowsᵀ · (codes − zero_point)`, (O, I): both sides shifted into int8, the shifts put back, in 32 bits."""
    shift = int(rows.min().nan_to_num()) + 128
    left, right = (rows - shift).to(torch.int8), _signed(codes)
    ones = torch.ones(8, len(rows), dtype=torch.int8)
    back = 128 - zero_point
    product = torch._int_mm(_transposed(left), right)
    product += back * torch._int_mm(ones, left)[0].unsqueeze(1) + shift * torch._int_mm(ones, right)[0]
    return product.add_(len(rows) * shift * back).float()


def _transposed(x: Tensor) -> Tensor:
    """Return a matrix's transpose; torch._int_mm reads that of a single column wrong, whose strides are ambiguous."""
    return x.t() if x.shape[1] > 1 else x.reshape(1, -1)


def _signed(codes: Tensor) -> Tensor:
    """Return uint8 codes as int8, less by 128."""
    return (codes ^ 128).view(torch.int8)


def integer(zero_point: Tensor) -> int:
    """Return a zero point as a number; the codes of a tensor with a NaN do not matter, its scale is NaN."""
    value = float(zero_point)
    return int(value) if value == value else 0  # noqa: PLR0124
