"""Rewrite the first convolution to four channels or more, which onnxruntime's fast integer kernel requires.

An image has three channels or one, and a convolution of these takes a slower path. Both rewrites compute the same
integers: the added weights are zero.
"""

from dataclasses import dataclass

import numpy as np

from cpt_deploy.integer.operations import Convolution
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import Codes

CHANNEL_BLOCK = 4
STRIDE = 2


@dataclass(frozen=True, slots=True)
class Stem:
    """A convolution on a rearranged input.

    Attributes:
        codes: Quantized weights over the rearranged channels, not shifted.
        strides: Strides of the convolution.
        pads: Padding, ONNX order.
        added_channels: Number of channels of real zero that are appended to the input; 0 with SpaceToDepth.
    """

    codes: Codes
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    added_channels: int


def align_stem(operation: Convolution, source: QuantizedTensor, output: QuantizedTensor) -> Stem | None:
    """Return the rewritten form of a convolution of one to three channels, or None if it has more.

    A 2-D convolution of stride 2 on a few channels becomes one of stride 1 on blocks of 2×2 pixels (`SpaceToDepth`),
    which is fastest; other convolutions get input channels of zeros.
    """
    channels = operation.codes.shape[1]
    if operation.groups != 1 or channels >= CHANNEL_BLOCK:
        return None
    if operation.strides == (STRIDE, STRIDE) and set(operation.dilations) == {1}:
        stem = _space_to_depth(operation, source, output)
        if stem is not None:
            return stem
    missing = CHANNEL_BLOCK - channels
    codes = np.pad(operation.codes, [(0, 0), (0, missing), *[(0, 0)] * (operation.codes.ndim - 2)])
    return Stem(codes, operation.strides, operation.pads, missing)


def _space_to_depth(operation: Convolution, source: QuantizedTensor, output: QuantizedTensor) -> Stem | None:
    """Pixel `2o − p + j` is pixel `(p + j) mod 2` of block `o − ⌈p/2⌉ + …`: the kernel grows to whole blocks."""
    begins, ends, paddings = [], [], [(0, 0), (0, 0)]
    for axis in (0, 1):
        size, made = source.shape[1 + axis], output.shape[1 + axis]
        kernel, pad = operation.codes.shape[2 + axis], operation.pads[axis]
        if size is None or made is None:
            return None
        shift = pad % STRIDE
        blocks = -(-(kernel + shift) // STRIDE)
        begin = (pad + shift) // STRIDE
        end = made - 1 + blocks - size // STRIDE - begin
        if size % STRIDE or end < 0:
            return None
        begins.append(begin)
        ends.append(end)
        paddings.append((shift, blocks * STRIDE - kernel - shift))
    codes = np.pad(operation.codes, paddings)
    out_channels, channels, height, width = codes.shape
    blocked = codes.reshape(out_channels, channels, height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    # SpaceToDepth orders its channels by (row in block, column in block, channel)
    folded = blocked.transpose(0, 3, 5, 1, 2, 4).reshape(out_channels, -1, height // STRIDE, width // STRIDE)
    return Stem(np.ascontiguousarray(folded), (1, 1), (*begins, *ends), 0)
