"""Lower a transposed convolution to an ordinary one whose channels are the positions of a block of outputs.

An output at `y` reads the inputs `x` and the kernel positions (taps) `k` with `s·x + k·d − p = y`. Outputs whose `y`
have the same remainder modulo the stride `s` read the same taps at neighbouring inputs. So a convolution of stride 1,
with `s` channels for each output channel and axis, computes them all, and the results are then interleaved
(W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
Network", 2016, arXiv:1609.05158; "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cpt_deploy.integer.operations import Convolution, Operation, Reshape, Slice, Transpose
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import Codes, FoldedWeights
from cpt_deploy.quantization.modules.layers import QuantizedConvTranspose1d, QuantizedConvTranspose2d

#: Size at which the axis of a free size is computed.
_ANY_SIZE = 1024
#: End of an axis of free size.
_LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of the ordinary convolution.

    Attributes:
        stride: Number of positions of a block.
        taps: For each tap of the kernel, its position in the block and in the new kernel.
        kernel: Number of taps of the new kernel; those without a tap of the old one are zero.
        dilation: Dilation of the new kernel.
        pads: Zeros before and after the input.
        blocks: Number of blocks; None if the size is free.
        kept: Begin and end of the output within the positions of all blocks; the end counts from the end of the axis if
            the size is free.
    """

    stride: int
    taps: tuple[tuple[int, int], ...]
    kernel: int
    dilation: int
    pads: tuple[int, int]
    blocks: int | None
    kept: tuple[int, int]


def axes_of(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, size: Sequence[int | None]) -> tuple[Axis, ...]:
    """Return the axes of a transposed convolution for an input of given spatial sizes; None is a free size."""
    options = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    return tuple(
        _free_axis(*values[1:]) if values[0] is None else _axis(*values) for values in zip(size, *options, strict=True)
    )


def _free_axis(*options: int) -> Axis:
    """Return the axis of an input of free size: the numbers of blocks and of positions differ by a constant."""
    axis = _axis(_ANY_SIZE, *options)
    assert axis.blocks is not None
    end = axis.kept[1] - axis.blocks * axis.stride
    return replace(axis, blocks=None, kept=(axis.kept[0], end or _LAST))


def _axis(size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> Axis:
    """Return the axis with the fewest taps; among equals the one with the fewest blocks, which crops least."""
    outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    offsets = [tap * dilation - padding for tap in range(kernel)]
    found = [_axis_from(size, outputs, stride, offsets, first) for first in range(stride)]
    return min(found, key=lambda axis: (axis.kernel, (axis.blocks or 0) * stride))


def _axis_from(size: int, outputs: int, stride: int, offsets: Sequence[int], first: int) -> Axis:
    """Return the axis whose first block begins `first` positions before the output."""
    blocks = -(-(outputs + first) // stride)
    reads = [-((offset + first) // stride) for offset in offsets]  # the input that a tap reads, relative to its block
    # a convolution pads but does not crop its input: zero taps skip the inputs that it should not read
    least, most = min(0, *reads), max(size - blocks, *reads)
    step = math.gcd(most - least, *(read - least for read in reads)) or 1
    taps = tuple((offset + first) % stride for offset in offsets), tuple((read - least) // step for read in reads)
    pads = -least, blocks - size + most
    kept = first, first + outputs
    return Axis(stride, tuple(zip(*taps, strict=True)), (most - least) // step + 1, step, pads, blocks, kept)


def ordinary_kernel(codes: Codes, axes: Sequence[Axis], groups: int) -> Codes:
    """Return the kernel of the ordinary convolution, (g · block · O/g, I/g, ...), from one with (O, I/g, ...).

    Its channels are ordered by group, then by position in the block, as in `in_blocks`.
    """
    outputs, inputs = codes.shape[:2]
    block, kernel = [axis.stride for axis in axes], [axis.kernel for axis in axes]
    whole = np.zeros((groups, *block, outputs // groups, inputs, *kernel), codes.dtype)
    grouped = codes.reshape(groups, outputs // groups, *codes.shape[1:])
    everything: Any = slice(None)
    for taps in itertools.product(*(range(len(axis.taps)) for axis in axes)):
        places = [axis.taps[tap] for axis, tap in zip(axes, taps, strict=True)]
        in_block, in_kernel = ([place[i] for place in places] for i in (0, 1))
        tap = grouped[(everything, everything, everything, *taps)]
        whole[(everything, *in_block, everything, everything, *in_kernel)] = tap
    return whole.reshape(-1, inputs, *kernel)


def in_blocks(values: NDArray[Any], axes: Sequence[Axis], groups: int) -> NDArray[Any]:
    """Repeat values of the output channels, (O,), for the channels of the ordinary convolution."""
    block = math.prod(axis.stride for axis in axes)
    return np.repeat(values.reshape(groups, 1, -1), block, axis=1).reshape(-1)


def transposed_convolution(
    layer: QuantizedConvTranspose1d | QuantizedConvTranspose2d,
    folded: FoldedWeights,
    bits: int,
    ends: tuple[QuantizedTensor, QuantizedTensor, str],
) -> list[tuple[Operation, QuantizedTensor]]:
    """Return the operations of a transposed convolution in integers, each with its output tensor.

    Blocks are interleaved with channels innermost, the layout of onnxruntime's convolutions: the transpositions before
    and after cancel those that onnxruntime inserts, and one movement of rows is left.

    Args:
        layer: Layer with the geometry.
        folded: Folded weights, with codes (O, I/g, ...).
        bits: Bits of the codes.
        ends: The input tensor, the output tensor, and the layer's name.
    """
    source, output, name = ends
    axes, groups = axes_of(layer, source.shape[1:]), layer.groups
    codes = ordinary_kernel(folded.codes, axes, groups)
    moved = _Movements(output, (len(codes), *(axis.blocks for axis in axes)))
    in_place = moved.last
    _put_side_by_side(moved, axes, groups)
    for axis, positions in enumerate(axes):
        moved.cut(axis + 1, *positions.kept)
    made = in_place if moved.steps else output
    convolution = Convolution(
        inputs=(source.name,),
        output=made.name,
        codes=codes,
        shift=folded.shift,
        scales=in_blocks(folded.scales, axes, groups),
        bias=in_blocks(folded.bias, axes, groups),
        bits=bits,
        source=name,
        strides=(1,) * len(axes),
        pads=(*(axis.pads[0] for axis in axes), *(axis.pads[1] for axis in axes)),
        dilations=tuple(axis.dilation for axis in axes),
        groups=groups,
    )
    return [(convolution, made), *moved.named()]


def _put_side_by_side(moved: "_Movements", axes: Sequence[Axis], groups: int) -> None:
    strides, blocks = [axis.stride for axis in axes], [axis.blocks for axis in axes]
    if math.prod(strides) == 1:
        return
    dimensions, channels = len(axes), moved.last.channels
    each = channels // math.prod(strides) // groups
    if None in blocks:
        _put_axes_together(moved, strides, groups, each)
        return
    moved.permute((0, *range(2, dimensions + 2), 1))
    moved.reshape((*blocks, groups, *strides, each))
    places = range(1, dimensions + 1)
    order = [axis for place in places for axis in (place, place + dimensions + 1)]
    moved.permute((0, *order, dimensions + 1, 2 * dimensions + 2))
    moved.reshape((*((axis.blocks or 0) * axis.stride for axis in axes), each * groups))
    moved.permute((0, dimensions + 1, *places))


def _put_axes_together(moved: "_Movements", strides: Sequence[int], groups: int, each: int) -> None:
    """Interleave blocks of free number, axis by axis: a reshape can infer only one size.

    An axis is moved next to the channels, which begin with its positions in the block, and takes them in. All of them
    move whole rows of channels, which is fast.
    """
    channels = groups * each
    if len(strides) == 1:
        moved.permute((0, 2, 1))
        if groups > 1:
            _put_groups_last(moved, strides, groups, each)
        moved.reshape((None, channels), (0, -1, channels))
        moved.permute((0, 2, 1))
        return
    moved.permute((0, 2, 3, 1))
    if groups > 1:
        _put_groups_last(moved, strides, groups, each)
    moved.permute((0, 2, 1, 3))
    moved.reshape((None, None, strides[1] * channels), (0, 0, -1, strides[1] * channels))
    moved.permute((0, 2, 1, 3))
    moved.reshape((None, None, channels), (0, 0, -1, channels))
    moved.permute((0, 3, 1, 2))


def _put_groups_last(moved: "_Movements", strides: Sequence[int], groups: int, each: int) -> None:
    """Order channels by position in the block, then by group; channels are last before and after."""
    free, block = [None] * len(strides), math.prod(strides)
    kept = [0] * (len(strides) + 1)
    moved.reshape((*free, groups, block, each), (*kept, groups, block, each))
    first = len(kept)
    moved.permute((*range(first), first + 1, first, first + 2))
    moved.reshape((*free, block * groups * each), (*kept, block * groups * each))


class _Movements:
    """Collects movements of quantized values, from a tensor of a given shape to the output.

    Args:
        output: The output tensor.
        shape: Shape of the first tensor, without the batch dimension.
    """

    def __init__(self, output: QuantizedTensor, shape: tuple[int | None, ...]) -> None:
        self._output = output
        #: The movements, each with its output tensor.
        self.steps: list[tuple[Operation, QuantizedTensor]] = []
        self.last = replace(output, name=f"{output.name}_blocks", shape=shape)

    def permute(self, order: tuple[int, ...]) -> None:
        """Permute all dimensions, the batch dimension first."""
        if order != tuple(range(len(order))):
            self._add(Transpose((self.last.name,), "", order), tuple(self.last.shape[axis - 1] for axis in order[1:]))

    def reshape(self, shape: tuple[int | None, ...], sizes: tuple[int, ...] = ()) -> None:
        """Reshape; `sizes` as in `Reshape`."""
        self._add(Reshape((self.last.name,), "", sizes), shape)

    def cut(self, axis: int, start: int, end: int) -> None:
        """Crop an axis, counted without the batch dimension, to a range."""
        shape = self.last.shape
        if start or end not in (shape[axis], _LAST):
            shape = (*shape[:axis], None if shape[axis] is None else end - start, *shape[axis + 1 :])
            self._add(Slice((self.last.name,), "", axis + 1, start, end), shape)

    def _add(self, operation: Operation, shape: tuple[int | None, ...]) -> None:
        name = f"{self._output.name}_moved_{len(self.steps) + 1}"
        self.last = replace(self._output, name=name, shape=shape)
        self.steps.append((replace(operation, output=name), self.last))

    def named(self) -> list[tuple[Operation, QuantizedTensor]]:
        """Return the movements; the last one computes the output tensor."""
        if not self.steps:
            return []
        operation, _ = self.steps[-1]
        return [*self.steps[:-1], (replace(operation, output=self._output.name), self._output)]
