"""An integer operator of onnxruntime's graph with its inputs, and the float32 steps that its kernels share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Floats = Any
"""float32, an array or a NumPy scalar."""
Values = Mapping[str, Array]


@dataclass(frozen=True)
class Recomputed:
    """A result of an integer operator.

    Args:
        values: The exact result.
        unit: Real value of one unit of the integer sums where the result is real, broadcastable to it; else `None`.
    """

    values: Array
    unit: Array | None = None


@dataclass(frozen=True)
class Call:
    """An operator with its inputs, and its results in onnxruntime.

    Args:
        node: The operator.
        values: Tensors by name, those of onnxruntime and the constants.
        attributes: Attributes of the operator.
    """

    node: onnx.NodeProto
    values: Values
    attributes: Mapping[str, Any]

    def get(self, place: int) -> Array | None:
        """Return an input; `None` if it is left out."""
        names = self.node.input
        return self.values[names[place]] if place < len(names) and names[place] else None

    def at(self, place: int) -> Array:
        """Return an input that the operator always has."""
        return self.values[self.node.input[place]]

    def scale(self, place: int) -> Floats:
        """Return a scale, float32."""
        return self.at(place).astype(np.float32)

    def zero(self, place: int) -> Array:
        """Return a zero point; 0 if it is left out."""
        given = self.get(place)
        return np.zeros((), np.int64) if given is None else given.astype(np.int64)

    @property
    def kind(self) -> np.dtype[Any]:
        """The dtype of the first result."""
        return self.values[self.node.output[0]].dtype


class UnknownArithmeticError(Exception):
    """The exact arithmetic of this form of an operator is not known, so it is left out of the comparison, and named."""


def saturated(real: Floats, zero: Array, kind: np.dtype[Any]) -> Array:
    """Round half to even, add the zero point, and saturate to the range of an integer dtype."""
    limits = np.iinfo(kind)
    codes: Array = np.clip(np.rint(real).astype(np.float64) + zero, limits.min, limits.max).astype(kind)
    return codes


def requantized(sums: Array, multiplier: Floats, zero: Array, kind: np.dtype[Any]) -> Array:
    """`rint(clamp(f32(acc) · m)) + z`."""
    limits = np.iinfo(kind)
    scaled = np.clip(sums.astype(np.float32) * multiplier, np.float32(limits.min - zero), np.float32(limits.max - zero))
    codes: Array = (np.rint(scaled).astype(np.int64) + zero).astype(kind)
    return codes


def along(values: Array, rank: int, axis: int) -> Array:
    """Return a vector along one axis of a tensor; a single value as a scalar."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim != 1:
        raise UnknownArithmeticError("scales per block")
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def geometry(
    attributes: Mapping[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return padding before and after, strides and dilations along each dimension."""
    number = len(kernel)
    strides = list(attributes.get("strides", [1] * number))
    dilations = list(attributes.get("dilations", [1] * number))
    mode = attributes.get("auto_pad", "NOTSET")
    if mode not in {"SAME_UPPER", "SAME_LOWER"}:
        given = [0] * 2 * number if mode == "VALID" else list(attributes.get("pads", [0] * 2 * number))
        return list(zip(given[:number], given[number:], strict=True)), strides, dilations
    pads = []
    for size, step, width, dilation in zip(sizes, strides, kernel, dilations, strict=True):
        total = max(0, (-(-size // step) - 1) * step + (width - 1) * dilation + 1 - size)
        small = total // 2
        pads.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return pads, strides, dilations
