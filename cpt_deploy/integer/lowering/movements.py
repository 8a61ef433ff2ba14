"""Lower operations that keep quantized values: max pooling, padding, reshaping, transposition, splitting."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.operations import MaxPool, Operation, Pad, Reshape, Slice, Transpose
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.graph.shapes import is_tensor, seen_shapes, sizes_of
from cpt_deploy.quantization.modules.padding import Padding


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor that is split along an axis; its parts are lowered one by one.

    Attributes:
        source: The tensor that is split.
        axis: Counted with the batch dimension.
        bounds: Start of each part and the end of the last.
    """

    source: QuantizedTensor
    axis: int
    bounds: tuple[int, ...]

    def part(self, index: int, name: str) -> tuple[Operation, QuantizedTensor]:
        """Return the operation that extracts one part, and the part."""
        index %= len(self.bounds) - 1
        start, end = self.bounds[index], self.bounds[index + 1]
        shape: list[int | None] = list(self.source.shape)
        shape[self.axis - 1] = end - start
        return Slice((self.source.name,), name, self.axis, start, end), same_codes(self.source, name, tuple(shape))


def same_codes(source: QuantizedTensor, name: str, shape: tuple[int | None, ...]) -> QuantizedTensor:
    """Return a tensor of another name and shape with the same quantization parameters."""
    return replace(source, name=name, shape=shape)


def lower_kept(
    node: fx.Node, module: nn.Module | None, source: QuantizedTensor
) -> tuple[Operation, QuantizedTensor] | KeptTensor | None:
    """Lower a node that keeps quantized values.

    Returns:
        An operation and its output; or the tensor to be split; or None if nothing changes in evaluation.
    """
    if node.target in ("chunk", "split", torch.chunk, torch.split):
        return _split(node, source)
    output = same_codes(source, node.name, sizes_of(node))
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
        return _max_pool(module, source, output), output
    if isinstance(module, Padding):
        return _pad(module, source, output), output
    if node.target in ("transpose", torch.transpose, "permute", torch.permute):
        return Transpose((source.name,), output.name, _permutation(node, len(source.shape) + 1)), output
    if output.shape == source.shape and seen_shapes(node) == seen_shapes(node.all_input_nodes[0]):
        return None
    assert is_tensor(node)
    return Reshape((source.name,), output.name, _free_sizes(node) if None in output.shape else ()), output


def _free_sizes(node: fx.Node) -> tuple[int, ...]:
    """Return the sizes of a reshaped tensor as in ONNX: 0 for unchanged sizes, -1 for an inferred one.

    Raises:
        ConversionError: If more than one free size differs from the input's size of the same dimension.
    """
    before, after = (seen_shapes(each) for each in (node.all_input_nodes[0], node))
    sizes = [0]
    for axis, size in enumerate(sizes_of(node), start=1):
        stays = all(
            len(was) > axis and was[: axis + 1] == now[: axis + 1] for was, now in zip(before, after, strict=True)
        )
        sizes.append(size if size is not None else 0 if stays else -1)
    if sizes.count(-1) > 1:
        raise ConversionError(
            f"Expected {node.name} to reshape at most one free dimension, but it reshapes several",
            hint="give these dimensions a size, or keep them in their places",
        )
    return tuple(sizes)


def _split(node: fx.Node, source: QuantizedTensor) -> KeptTensor:
    amount: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks", node.kwargs.get("split_size"))
    axis = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) % (len(source.shape) + 1)  # type: ignore[arg-type]
    if axis == 0 or not isinstance(amount, int | list | tuple):
        raise ConversionError(f"Expected {node.name} to split channels or positions by known sizes, but it does not")
    size = source.shape[axis - 1]
    if size is None:
        raise ConversionError(f"Expected {node.name} to split channels or positions of a known number, but it is free")
    if isinstance(amount, int):
        step = -(-size // amount) if "chunk" in str(getattr(node.target, "__name__", node.target)) else amount
        bounds = [*range(0, size, step), size]
    else:
        bounds = [0]
        for part in amount:
            bounds.append(bounds[-1] + int(part))
    return KeptTensor(source, axis, tuple(bounds))


def _permutation(node: fx.Node, rank: int) -> tuple[int, ...]:
    values: Any = node.args[1:]
    if len(values) == 1 and isinstance(values[0], tuple | list):
        values = values[0]
    axes = [int(axis) % rank for axis in values]
    if "transpose" in str(getattr(node.target, "__name__", node.target)):
        order = list(range(rank))
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
        axes = order
    if axes[0] != 0:
        raise ConversionError(f"Expected {node.name} to leave the batch dimension first, but it permutes to {axes}")
    return tuple(axes)


def _pad(module: Padding, source: QuantizedTensor, output: QuantizedTensor) -> Pad:
    begins, ends = module.widths[::2][::-1], module.widths[1::2][::-1]
    before = (0,) * (len(source.shape) + 1 - len(begins))
    return Pad((source.name,), output.name, module.mode, (*before, *begins, *before, *ends))


def _max_pool(module: nn.MaxPool1d | nn.MaxPool2d, source: QuantizedTensor, output: QuantizedTensor) -> MaxPool:
    dimensions = 1 if isinstance(module, nn.MaxPool1d) else 2

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (int(value),) * dimensions

    kernel = each(module.kernel_size)
    strides = each(module.stride if module.stride is not None else module.kernel_size)
    padding, dilations = each(module.padding), each(module.dilation)
    return MaxPool((source.name,), output.name, kernel, strides, padding * 2, dilations, bool(module.ceil_mode))
