"""ONNX operators as PyTorch layers, where they have weights, and as PyTorch functions."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, fx, nn
from torch.nn import functional

from cpt_deploy.errors import ConversionError

Shape = tuple[int | None, ...]
Arrays = Sequence[NDArray[Any] | None]
Layer = Callable[[Arrays, Mapping[str, Any], Shape | None], nn.Module | None]
"""Returns the layer of an operator from its constant inputs, attributes and input shape; None if it is no layer."""

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


# --- layers -----------------------------------------------------------------------------------------------------------


def _tensors(arrays: Arrays, places: Sequence[int]) -> list[Tensor] | None:
    found = [arrays[place] for place in places if place < len(arrays)]
    if len(found) < len(places) or any(array is None for array in found):
        return None
    return [torch.from_numpy(np.array(array, np.float32)) for array in found]


def _padding(attributes: Mapping[str, Any], sizes: Shape, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the padding at the beginning and at the end of each dimension."""
    dimensions, automatic = len(kernel), attributes.get("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        pads = list(attributes.get("pads", [0] * 2 * dimensions))
        return pads[:dimensions], pads[dimensions:]
    begins, ends = [], []
    strides, dilations = (attributes.get(key, [1] * dimensions) for key in ("strides", "dilations"))
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if automatic == "VALID":
            total = 0
        elif size is None:
            raise ConversionError(f"Expected images of a known size for the padding {automatic}, but it is free")
        else:
            total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        begins.append(total // 2 if automatic != "SAME_LOWER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins, ends


def _evenly_padded(weight: Tensor, begins: list[int], ends: list[int], dilations: Sequence[int]) -> Tensor:
    """Return weights with zeros on the side of the smaller padding, which give the same sums with equal paddings."""
    zeros: list[int] = []
    for begin, end, dilation in zip(begins, ends, dilations, strict=True):
        missing = abs(end - begin)
        if missing % dilation:
            raise ConversionError(f"Expected paddings whose difference the dilation {dilation} divides")
        zeros = [*((missing // dilation, 0) if begin < end else (0, missing // dilation)), *zeros]
    return functional.pad(weight, zeros) if any(zeros) else weight


def _convolution(arrays: Arrays, attributes: Mapping[str, Any], shape: Shape | None) -> nn.Module | None:
    given = _tensors(arrays, (1,))
    bias = _tensors(arrays, (2,))
    if given is None or given[0].dim() not in (3, 4) or (len(arrays) > 2 and bias is None):
        return None
    dimensions = given[0].dim() - 2
    strides, dilations = (tuple(attributes.get(key, (1,) * dimensions)) for key in ("strides", "dilations"))
    begins, ends = _padding(attributes, (shape or ())[2:] or (None,) * dimensions, given[0].shape[2:])
    weight, groups = _evenly_padded(given[0], begins, ends, dilations), int(attributes.get("group", 1))
    layer = (nn.Conv1d if dimensions == 1 else nn.Conv2d)(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),  # type: ignore[arg-type]
        strides, tuple(map(max, begins, ends)), dilations, groups, bias is not None,  # type: ignore[arg-type]
    )  # fmt: skip
    return _loaded(layer, weight, bias)


def _fully_connected(arrays: Arrays, attributes: Mapping[str, Any], shape: Shape | None) -> nn.Module | None:
    given, bias = _tensors(arrays, (1,)), _tensors(arrays, (2,))
    if given is None or given[0].dim() != 2 or attributes.get("transA", 0) or (len(arrays) > 2 and bias is None):
        return None
    weight = given[0] if attributes.get("transB", 0) else given[0].T
    weight = weight * float(attributes.get("alpha", 1.0))
    if bias is not None:
        bias = [(bias[0].reshape(-1) * float(attributes.get("beta", 1.0))).expand(len(weight))]
    return _loaded(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)


def _loaded(layer: nn.Module, weight: Tensor, bias: list[Tensor] | None) -> nn.Module:
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias[0]})
    return layer


def _batch_norm(arrays: Arrays, attributes: Mapping[str, Any], shape: Shape | None) -> nn.Module | None:
    given = _tensors(arrays, (1, 2, 3, 4))
    if given is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    # PyTorch does not train a BatchNorm with an epsilon of 0; this one is negligible against any variance
    eps = max(float(attributes.get("epsilon", 1e-5)), torch.finfo(torch.float32).tiny)
    layer = (nn.BatchNorm2d if shape is not None and len(shape) == 4 else nn.BatchNorm1d)(len(given[0]), eps=eps)
    layer.load_state_dict({**dict(zip(names, given, strict=True)), "num_batches_tracked": torch.tensor(1)})
    return layer


def _layer_norm(arrays: Arrays, attributes: Mapping[str, Any], shape: Shape | None) -> nn.Module | None:
    weight, bias = _tensors(arrays, (1,)), _tensors(arrays, (2,))
    if weight is None or attributes.get("axis", -1) not in (-1, len(shape or ()) - 1):
        return None
    layer = nn.LayerNorm(tuple(weight[0].shape), float(attributes.get("epsilon", 1e-5)), bias=bias is not None)
    return _loaded(layer, weight[0], bias)


LAYERS: Mapping[str, Layer] = {
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "Gemm": _fully_connected,
    "LayerNormalization": _layer_norm,
    "MatMul": _fully_connected,
}
"""The layers of operators with weights."""


# --- functions --------------------------------------------------------------------------------------------------------


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
    begins, ends = _padding(call.attributes, tuple(call.x.shape[2:]), kernel)
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
    return call.x.index_select(axis, torch.tensor(places, device=call.x.device))


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
    half = len(pads) // 2
    pairs = [size for axis in reversed(range(half)) for size in (pads[axis], pads[axis + half])]
    if mode == "constant":
        return functional.pad(call.x, pairs, value=float(value))
    return functional.pad(call.x, pairs[:4], mode={"reflect": "reflect", "edge": "replicate"}[mode])


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
