"""ONNX operators as PyTorch functions."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, fx
from torch.nn import functional

from cpt_deploy.errors import ConversionError
from cpt_deploy.models.onnx_layers import Shape, padding

#: PyTorch's names of the modes of Pad.
_PADDING_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        inputs: Tensors; sizes and integer constants as lists or numbers of Python, single real ones as numbers; None if
            omitted.
        attributes: The operator's attributes.
        outputs: Number of its outputs.
        shape: Shape of the first input, None where it is free.
    """

    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    outputs: int
    shape: Shape | None = None

    @property
    def x(self) -> Any:
        """The first input."""
        return self.inputs[0]

    def get(self, place: int, key: str, default: Any = None) -> Any:
        """Return an argument that newer opsets have as an input and older ones as an attribute."""
        given = self.inputs[place] if place < len(self.inputs) else None
        return self.attributes.get(key, default) if given is None else given


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, or stands for one in a trace; sizes are neither."""
    return isinstance(value, Tensor | fx.Proxy)


def _clip(call: Call) -> Any:
    low, high = (call.get(place, key) for place, key in ((1, "min"), (2, "max")))
    low, high = (None if b is None or abs(b) >= _LARGEST else float(b) for b in (low, high))
    if (low, high) in ((0.0, None), (0.0, 6.0)):
        return functional.relu(call.x) if high is None else functional.relu6(call.x)
    return torch.clamp(call.x, low, high)


def _hard_sigmoid(call: Call) -> Any:
    alpha, beta = float(call.attributes.get("alpha", 0.2)), float(call.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(call.x)
    return torch.clamp(call.x * alpha + beta, 0.0, 1.0)


def _window(call: Call) -> tuple[Any, Any, Any]:
    kernel = tuple(call.attributes["kernel_shape"])
    begins, ends = padding(call.attributes, tuple(call.x.shape[2:]), kernel)
    if begins != ends or len(kernel) != 2:
        raise ConversionError("Expected pooling over two dimensions with equal padding at both ends")
    return kernel, tuple(call.attributes.get("strides", (1,) * len(kernel))), tuple(begins)


def _max_pool(call: Call) -> Any:
    dilations = tuple(call.attributes.get("dilations", (1, 1)))
    kernel, strides, padding = _window(call)
    ceil = bool(call.attributes.get("ceil_mode", 0))
    return functional.max_pool2d(call.x, kernel, strides, padding, dilations, ceil)


def _average_pool(call: Call) -> Any:
    if any(dilation != 1 for dilation in call.attributes.get("dilations", (1,))):
        raise ConversionError("Expected average pooling without dilation")
    kernel, strides, padding = _window(call)
    counted = bool(call.attributes.get("count_include_pad", 0)) or not any(padding)
    return functional.avg_pool2d(call.x, kernel, strides, padding, bool(call.attributes.get("ceil_mode", 0)), counted)


def _mean(call: Call) -> Any:
    axes, keep = call.get(1, "axes"), bool(call.attributes.get("keepdims", 1))
    axes = [axis % call.x.dim() for axis in (axes or range(call.x.dim()))]
    if call.x.dim() == 4 and sorted(axes) == [2, 3]:
        average = functional.adaptive_avg_pool2d(call.x, 1)
        return average if keep else torch.flatten(average, 1)
    return call.x.mean(axes, keepdim=keep)


def _reshape(call: Call) -> Any:
    sizes = list(call.inputs[1])
    if not call.attributes.get("allowzero", 0):
        sizes = [call.x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    rest = None if call.shape is None or None in call.shape[1:] else prod(size or 0 for size in call.shape[1:])
    if len(sizes) == 2 and (sizes[1] == rest or sizes[0] == call.x.shape[0]):
        return torch.flatten(call.x, 1)
    return call.x.reshape(sizes)


def _expand(call: Call) -> Any:
    sizes = list(call.inputs[1])
    new = len(sizes) - call.x.dim()
    kept = [-1 if axis >= new and isinstance(size, int) and size == 1 else size for axis, size in enumerate(sizes)]
    return call.x.expand(kept)


def _shape(call: Call) -> list[Any]:
    sizes = [call.x.size(axis) for axis in range(call.x.dim())]
    return sizes[call.attributes.get("start", 0) : call.attributes.get("end", len(sizes))]


def _squeeze(call: Call) -> Any:
    axes = call.get(1, "axes")
    if isinstance(call.x, list):
        return call.x[0]
    if axes is not None and sorted(axis % call.x.dim() for axis in axes) == list(range(2, call.x.dim())):
        return torch.flatten(call.x, 1)
    return call.x.squeeze() if axes is None else call.x.squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Any:
    axes = call.get(1, "axes")
    if not _is_tensor(call.x):
        return [call.x]
    rank = call.x.dim() + len(axes)
    return reduce(lambda x, axis: x.unsqueeze(axis), sorted(axis % rank for axis in axes), call.x)


def _split(call: Call) -> Any:
    axis, sizes = int(call.attributes.get("axis", 0)), call.get(1, "split")
    each = -(-call.x.shape[axis] // call.outputs)
    return torch.split(call.x, each if sizes is None else sizes, axis)


def _slice(call: Call) -> Any:
    starts, ends = call.get(1, "starts"), call.get(2, "ends")
    axes, steps = call.get(3, "axes", list(range(len(starts)))), call.get(4, "steps", [1] * len(starts))
    if isinstance(call.x, list):
        return call.x[starts[0] : ends[0] : steps[0]]
    if any(step < 1 for step in steps):
        raise ConversionError("Expected slices that go forward")
    size = call.shape[axes[0]] if call.shape is not None and (len(axes), steps[0]) == (1, 1) else None
    if size is not None:  # parts of a split have an integer form
        start, end = (min(max(place + size if place < 0 else place, 0), size) for place in (starts[0], ends[0]))
        parts = [length for length in (start, end - start, size - end) if length]
        return torch.split(call.x, parts, axes[0])[int(start > 0)]
    places: list[Any] = [slice(None)] * call.x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, min(end, 2**31), step)
    return call.x[tuple(places)]


def _gather(call: Call) -> Any:
    axis, places = int(call.attributes.get("axis", 0)), call.inputs[1]
    if isinstance(call.x, list):
        return call.x[places] if isinstance(places, int) else [call.x[place] for place in places]
    if isinstance(places, int):
        return call.x.select(axis, places)
    indices = torch.tensor(places, device=call.x.device)
    if bool((indices < 0).any()):
        indices = torch.where(indices < 0, indices + call.x.shape[axis], indices)
    rows = call.x.index_select(axis, indices.flatten())
    return rows if indices.dim() == 1 else rows.unflatten(axis, tuple(indices.shape))


def _concat(call: Call) -> Any:
    if any(isinstance(part, list) for part in call.inputs):
        return [size for part in call.inputs for size in part]
    return torch.cat(list(call.inputs), int(call.attributes["axis"]))


def _cast(call: Call) -> Any:
    if not _is_tensor(call.x):
        return call.x
    if call.attributes["to"] != TensorProto.FLOAT:
        raise ConversionError("Expected casts to float32 only")
    return call.x.to(torch.float32)


def _pad(call: Call) -> Any:
    pads, value, mode = call.get(1, "pads"), call.get(2, "value", 0.0), call.attributes.get("mode", "constant")
    rank = call.x.dim()
    sizes = dict.fromkeys(range(rank), (0, 0))
    axes = call.get(3, "axes", range(rank))
    sizes |= {axis % rank: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    pairs = [size for axis in reversed(range(rank)) for size in sizes[axis]]
    if mode == "constant":
        return functional.pad(call.x, pairs, value=float(value))
    if rank != 4 or any(pairs[4:]):
        raise ConversionError(f"Expected padding of mode {mode} at the sides of images only")
    return functional.pad(call.x, pairs[:4], mode=_PADDING_MODES[mode])


def _transpose(call: Call) -> Any:
    return call.x.permute(*call.attributes.get("perm", range(call.x.dim())[::-1]))


def _gelu(call: Call) -> Any:
    return functional.gelu(call.x, approximate=call.attributes.get("approximate", "none"))


def _sum(call: Call) -> Any:
    return reduce(operator.add, call.inputs)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Call], Any]:
    return lambda call: function(call.inputs[0], call.inputs[1])


def _unary(function: Callable[[Tensor], Any]) -> Callable[[Call], Any]:
    return lambda call: function(call.x)


FUNCTIONS: Mapping[str, Callable[[Call], Any]] = {
    "Add": _binary(operator.add),
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Cast": _cast,
    "Concat": _concat,
    "Div": _binary(operator.truediv),
    "Dropout": _unary(lambda x: x),
    "Elu": lambda call: functional.elu(call.x, float(call.attributes.get("alpha", 1.0))),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": lambda call: torch.flatten(call.x, int(call.attributes.get("axis", 1))),
    "Gather": _gather,
    "Gelu": _gelu,
    "GlobalAveragePool": _unary(lambda x: functional.adaptive_avg_pool2d(x, 1)),
    "GlobalMaxPool": _unary(lambda x: functional.adaptive_max_pool2d(x, 1)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": lambda call: functional.leaky_relu(call.x, float(call.attributes.get("alpha", 0.01))),
    "MatMul": _binary(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _binary(operator.mul),
    "Neg": _unary(operator.neg),
    "Pad": _pad,
    "Pow": _binary(operator.pow),
    "ReduceMean": _mean,
    "Relu": _unary(functional.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda call: functional.softmax(call.x, int(call.attributes.get("axis", -1))),
    "Softplus": _unary(functional.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Sum": _sum,
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda call: torch.where(*call.inputs),
}
"""The functions of operators without weights."""
