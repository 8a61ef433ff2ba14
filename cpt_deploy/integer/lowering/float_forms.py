"""Rewrite float operations that differ between PyTorch and ONNX or onnxruntime as operations that agree in both."""

import itertools
from typing import Any

import numpy as np
import torch
from torch import fx

from cpt_deploy.integer.float_calls import float_call
from cpt_deploy.integer.operations import Constant, Operation

aten = torch.ops.aten

#: Average pooling, by its number of dimensions.
CEILED: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema}
    return values | dict(zip(values, node.args, strict=False)) | node.kwargs


def needs_factors(node: fx.Node) -> bool:
    """Return whether an average pooling has windows beyond the input's end, which runtimes divide differently."""
    return bool(_arguments(node)["ceil_mode"])


def average_with_factors(node: fx.Node, source: str, output: str) -> list[Operation]:
    """Write average pooling as that of a padded input without cropped windows, times a factor for each position.

    Args:
        node: A call of `aten.avg_pool1d` to `3d`, with shapes.
        source: Name of the input's real values.
        output: Name of the result.
    """
    values, dimensions = _arguments(node), CEILED[node.target]
    kernel, padding = (_each(values[name], dimensions) for name in ("kernel_size", "padding"))
    strides = _each(values["stride"], dimensions) if values["stride"] else kernel
    sizes, results = (shape[-dimensions:] for shape in (node.all_input_nodes[0].meta["shape"], node.meta["shape"]))
    pads, factors = list[int](), list[list[float]]()
    for size, result, k, s, p in zip(sizes, results, kernel, strides, padding, strict=True):
        pads = [p, max(0, (result - 1) * s + k - p - size), *pads]  # of the last dimension first
        counted = values["count_include_pad"]
        factors.append([k / _divisor(i * s - p, k, size, p, include=counted) for i in range(result)])
    factor = np.array([np.prod(each) for each in itertools.product(*factors)]).reshape(results)
    if values.get("divisor_override"):
        factor = np.full(results, np.prod(kernel) / values["divisor_override"])
    padded, averaged, name = (f"{output}_{part}" for part in ("padded", "averaged", "factors"))
    target = str(node.target)
    return [
        float_call("aten.constant_pad_nd.default", (source,), padded, pads, 0.0),
        float_call(target, (padded,), averaged, kernel, strides),
        Constant((), name, factor.astype(np.float32)),
        float_call("aten.mul.Tensor", (averaged, name), output),
    ]


def _divisor(start: int, kernel: int, size: int, padding: int, *, include: bool) -> int:
    """Return the number of positions of one dimension that PyTorch counts in a window."""
    end = min(start + kernel, size + padding)
    return end - start if include else min(end, size) - max(start, 0)


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def by_own_statistics(source: str, output: str, name: str, eps: float, rank: int) -> list[Operation]:
    """Normalise each channel of a tensor (N, C, ...) by mean and variance of its batch.

    Args:
        source: Name of the tensor.
        output: Name of the result.
        name: Prefix of the names of intermediate results.
        eps: Added to the variance.
        rank: Number of dimensions of the tensor.
    """
    axes = [0, *range(2, rank)]
    mean, centred, squares, variance, shifted, inverse = (
        f"{name}_{part}" for part in ("mean", "centred", "squares", "variance", "shifted", "inverse")
    )
    return [
        float_call("aten.mean.dim", (source,), mean, axes, True),
        float_call("aten.sub.Tensor", (source, mean), centred),
        float_call("aten.mul.Tensor", (centred, centred), squares),
        float_call("aten.mean.dim", (squares,), variance, axes, True),
        float_call("aten.add.Scalar", (variance,), shifted, eps),
        float_call("aten.rsqrt.default", (shifted,), inverse),
        float_call("aten.mul.Tensor", (centred, inverse), output),
    ]
