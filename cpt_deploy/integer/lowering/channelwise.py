"""What scales and shifts each channel (BatchNorm alone, constants, a hard sigmoid) as a depthwise convolution."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.convolutions import average, depthwise, has_positions
from cpt_deploy.integer.graph import Operation, QuantizedTensor, Reshape
from cpt_deploy.quantization.graph.capture.constants import ChannelwiseConstant, Constant
from cpt_deploy.quantization.numerics.folding import BIAS_LIMIT, FLOAT_BIAS_LIMIT, Floats, channelwise, normalisation

Lowered = list[tuple[Operation, QuantizedTensor]]
"""Operations in order, each with the tensor that it makes."""


def lower_channelwise(
    module: nn.Module | None,
    name: str,
    tensors: tuple[QuantizedTensor, QuantizedTensor],
    new_name: Callable[[str], str],
) -> Lowered:
    """Lower a module that scales and shifts each channel, or averages over windows, to a convolution over positions.

    Args:
        module: The module.
        name: Its path.
        tensors: What it reads and what it makes.
        new_name: Gives a tensor a name that no other has.

    Raises:
        ConversionError: If there are more than two dimensions of positions, and sizes of them are free.
    """
    source, output = tensors
    if has_positions(source):
        return [(_convolution(module, name, source, output), output)]
    # features, or more than two dimensions of positions, which become one
    positions = [size for size in source.shape[1:] if size is not None]
    if len(positions) < len(source.shape) - 1:
        raise ConversionError(f"Expected positions of {source.name!r} of known sizes, but some are free")
    shape = (source.channels, math.prod(positions), 1)
    given, made = (
        replace(tensor, name=new_name(f"{output.name}_{part}"), shape=shape)
        for tensor, part in ((source, "given"), (output, "made"))
    )
    convolution = _convolution(module, name, given, made)
    return [(reshape(source, given), given), (convolution, made), (reshape(made, output), output)]


def _convolution(module: nn.Module | None, name: str, source: QuantizedTensor, output: QuantizedTensor) -> Operation:
    dimensions, channels = len(source.shape) - 1, source.channels
    match module:
        case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return average(module, source, output)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            factor, offset = normalisation(module, channels)
        case nn.Hardsigmoid():
            # x/6 + 1/2, cut at 0 by the zero point and at 1 by the greatest code: the observed range lies in [0, 1]
            factor, offset = np.full(channels, 1 / 6), np.full(channels, 0.5)
        case ChannelwiseConstant():
            factor, offset = (_of_channels(value, channels) for value in (module.factor, module.offset))
        case _:
            raise AssertionError(f"{name} is not channelwise")
    folded = channelwise(factor, offset, dimensions, source.scale, bias_limit(source))
    return depthwise(folded, source, output, name, (1,) * dimensions, (0,) * 2 * dimensions)


def bias_limit(source: QuantizedTensor) -> int:
    """Return the greatest bias code of a layer; beside signed activations biases are stored in float."""
    return FLOAT_BIAS_LIMIT if source.signed else BIAS_LIMIT


def reshape(source: QuantizedTensor, output: QuantizedTensor) -> Operation:
    """Return the operation that gives a tensor's codes another shape."""
    return Reshape((source.name,), output.name)


def _of_channels(value: Constant, channels: int) -> Floats:
    """Return a constant as float64 (C,)."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    return np.broadcast_to(array.reshape(-1), channels)
