"""ONNX operators with weights as PyTorch layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.errors import ConversionError

Shape = tuple[int | None, ...]
Arrays = Sequence[NDArray[Any] | None]
Layer = Callable[[Arrays, Mapping[str, Any], Shape | None], nn.Module | None]
"""Returns the layer of an operator from its constant inputs, attributes and input shape; None if it is no layer."""


def _tensors(arrays: Arrays, places: Sequence[int]) -> list[Tensor] | None:
    found = [arrays[place] for place in places if place < len(arrays)]
    if len(found) < len(places) or any(array is None for array in found):
        return None
    return [torch.from_numpy(np.array(array, np.float32)) for array in found]


def padding(attributes: Mapping[str, Any], sizes: Shape, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
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
    begins, ends = padding(attributes, (shape or ())[2:] or (None,) * dimensions, given[0].shape[2:])
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
