"""A transposed convolution as an ordinary one: each output position of a block of strides is a channel of its own.

An output at `y` reads the inputs `x` and the taps `k` with `s·x + k·d − p = y`. Outputs whose `y` leaves the same
rest when divided by the stride `s` read the same taps at neighbouring inputs. So a convolution without a stride, with
`s` channels for each output channel and axis, computes them all, and what is left is to put them side by side
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

from cpt_deploy.integer.graph import Convolution, Operation, QuantizedTensor, Reshape, Slice, Transpose
from cpt_deploy.quantization.modules.layers import QuantizedConvTranspose1d, QuantizedConvTranspose2d
from cpt_deploy.quantization.numerics.folding import Codes, FoldedWeights

#: A size from which an axis of any size is found.
_ANY_SIZE = 1024
#: The end of an axis of any size.
_LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of the ordinary convolution.

    Attributes:
        stride: Positions of a block.
        taps: For each tap of the kernel, its position in the block and in the new kernel.
        kernel: Taps of the new kernel; those that no tap of the old one goes to are zero.
        dilation: Of the new kernel.
        pads: Zeros before and after the input.
        blocks: How many blocks there are; None if the size is free.
        kept: Where the output begins and ends within the positions of all blocks; counted from the end if it is free.
    """

    stride: int
    taps: tuple[tuple[int, int], ...]
    kernel: int
    dilation: int
    pads: tuple[int, int]
    blocks: int | None
    kept: tuple[int, int]


def axes_of(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, size: Sequence[int | None]) -> tuple[Axis, ...]:
    """Return the axes of a transposed convolution of an input with so many positions on each; None where it is free."""
    options = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    return tuple(
        _free_axis(*values[1:]) if values[0] is None else _axis(*values) for values in zip(size, *options, strict=True)
    )


def _free_axis(*options: int) -> Axis:
    """Return the axis of an input of any size: blocks are as many more than positions, whatever their number is."""
    axis = _axis(_ANY_SIZE, *options)
    assert axis.blocks is not None
    end = axis.kept[1] - axis.blocks * axis.stride
    return replace(axis, blocks=None, kept=(axis.kept[0], end or _LAST))


def _axis(size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> Axis:
    """Return the axis with the fewest taps; of those the one of which least is cut off."""
    outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    offsets = [tap * dilation - padding for tap in range(kernel)]
    found = [_axis_from(size, outputs, stride, offsets, first) for first in range(stride)]
    return min(found, key=lambda axis: (axis.kernel, (axis.blocks or 0) * stride))


def _axis_from(size: int, outputs: int, stride: int, offsets: Sequence[int], first: int) -> Axis:
    """Return the axis whose first block begins `first` positions before the output."""
    blocks = -(-(outputs + first) // stride)
    reads = [-((offset + first) // stride) for offset in offsets]  # the input that a tap reads, from its block's place
    # a convolution pads, but does not cut its input: taps of zero reach what it has to read over
    least, most = min(0, *reads), max(size - blocks, *reads)
    step = math.gcd(most - least, *(read - least for read in reads)) or 1
    taps = tuple((offset + first) % stride for offset in offsets), tuple((read - least) // step for read in reads)
    pads = -least, blocks - size + most
    kept = first, first + outputs
    return Axis(stride, tuple(zip(*taps, strict=True)), (most - least) // step + 1, step, pads, blocks, kept)


def ordinary_kernel(codes: Codes, axes: Sequence[Axis], groups: int) -> Codes:
    """Return the kernel of the ordinary convolution, (g · block · O/g, I/g, ...), of one with (O, I/g, ...).

    Its channels are those of a group together, in it those of a position of the block, in the order of `in_blocks`.
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
    """Return values of the output channels, (O,), as those of the ordinary convolution's channels."""
    block = math.prod(axis.stride for axis in axes)
    return np.repeat(values.reshape(groups, 1, -1), block, axis=1).reshape(-1)


def transposed_convolution(
    layer: QuantizedConvTranspose1d | QuantizedConvTranspose2d,
    folded: FoldedWeights,
    bits: int,
    ends: tuple[QuantizedTensor, QuantizedTensor, str],
) -> list[tuple[Operation, QuantizedTensor]]:
    """Return the operations of a transposed convolution on codes, each with the tensor that it makes.

    The codes of blocks are moved with channels innermost, as onnxruntime's convolutions have them: the transpositions
    before and after cancel those that it puts there itself, and one movement of rows is left.

    Args:
        layer: Gives the geometry.
        folded: Codes (O, I/g, ...) and what belongs to them.
        bits: Bits of the codes.
        ends: The tensor that it reads, the one that it makes, and the layer's name.
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
    """Put blocks of any number side by side, axis by axis: a reshaped tensor can have one size that is not known."""
    channels = groups * each
    if len(strides) == 1:
        moved.permute((0, 2, 1))
        moved.reshape((None, groups, *strides, each), (0, 0, groups, *strides, each))
        moved.permute((0, 2, 4, 1, 3))
        moved.reshape((channels, None), (0, channels, -1))
        return
    moved.permute((0, 2, 3, 1))
    moved.reshape((None, None, groups, *strides, each), (0, 0, 0, groups, *strides, each))
    moved.permute((0, 1, 4, 3, 6, 2, 5))
    moved.reshape((None, strides[0], channels, None), (0, 0, strides[0], channels, -1))
    moved.permute((0, 3, 4, 1, 2))
    moved.reshape((channels, None, None), (0, channels, 0, -1))
    moved.permute((0, 1, 3, 2))


class _Movements:
    """Collects movements of codes, from a tensor of some shape to the one that is wanted.

    Args:
        output: The tensor that is wanted.
        shape: Shape of the first one, without the batch dimension.
    """

    def __init__(self, output: QuantizedTensor, shape: tuple[int | None, ...]) -> None:
        self._output = output
        #: What moves, and the tensor that it makes.
        self.steps: list[tuple[Operation, QuantizedTensor]] = []
        self.last = replace(output, name=f"{output.name}_blocks", shape=shape)

    def permute(self, order: tuple[int, ...]) -> None:
        """Permute all dimensions, the batch dimension first."""
        if order != tuple(range(len(order))):
            self._add(Transpose((self.last.name,), "", order), tuple(self.last.shape[axis - 1] for axis in order[1:]))

    def reshape(self, shape: tuple[int | None, ...], sizes: tuple[int, ...] = ()) -> None:
        """Give another shape; `sizes` as in `Reshape`."""
        self._add(Reshape((self.last.name,), "", sizes), shape)

    def cut(self, axis: int, start: int, end: int) -> None:
        """Take a range of an axis, counted without the batch dimension."""
        shape = self.last.shape
        if start or end not in (shape[axis], _LAST):
            shape = (*shape[:axis], None if shape[axis] is None else end - start, *shape[axis + 1 :])
            self._add(Slice((self.last.name,), "", axis + 1, start, end), shape)

    def _add(self, operation: Operation, shape: tuple[int | None, ...]) -> None:
        name = f"{self._output.name}_moved_{len(self.steps) + 1}"
        self.last = replace(self._output, name=name, shape=shape)
        self.steps.append((replace(operation, output=name), self.last))

    def named(self) -> list[tuple[Operation, QuantizedTensor]]:
        """Return the movements, of which the last makes the tensor that is wanted."""
        if not self.steps:
            return []
        operation, _ = self.steps[-1]
        return [*self.steps[:-1], (replace(operation, output=self._output.name), self._output)]
