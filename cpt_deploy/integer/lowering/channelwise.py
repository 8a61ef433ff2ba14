"""Lower operations that scale and shift each channel (BatchNorm alone, constants, hard sigmoid) to convolutions."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.convolutions import average, depthwise, has_positions
from cpt_deploy.integer.operations import Operation, Reshape
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import BIAS_LIMIT, FLOAT_BIAS_LIMIT, Floats, channelwise, normalisation
from cpt_deploy.quantization.modules.channelwise_constant import ChannelwiseConstant, Constant

Lowered = list[tuple[Operation, QuantizedTensor]]
"""Operations in order, each with its output tensor."""


def lower_channelwise(
    module: nn.Module | None,
    name: str,
    tensors: tuple[QuantizedTensor, QuantizedTensor],
    new_name: Callable[[str], str],
) -> Lowered:
    """Lower a module that scales and shifts each channel, or averages over windows, to a depthwise convolution.

    Args:
        module: The module.
        name: Its path.
        tensors: Its input and its output tensor.
        new_name: Returns an unused name for a tensor.

    Raises:
        ConversionError: If there are more than two spatial dimensions, and some of their sizes are free.
    """
    source, output = tensors
    if has_positions(source):
        return [(_convolution(module, name, source, output), output)]
    # features, or more than two spatial dimensions, which are flattened to one
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
            # x/6 + 1/2, clamped at 0 by the zero point and at 1 by quant_max: the observed range lies in [0, 1]
            factor, offset = np.full(channels, 1 / 6), np.full(channels, 0.5)
        case ChannelwiseConstant():
            factor, offset = (_of_channels(value, channels) for value in (module.factor, module.offset))
        case _:
            raise AssertionError(f"{name} is not channelwise")
    folded = channelwise(factor, offset, dimensions, source.scale, bias_limit(source))
    return depthwise(folded, source, output, name, (1,) * dimensions, (0,) * 2 * dimensions)


def bias_limit(source: QuantizedTensor) -> int:
    """Return the maximum int32 bias of a layer; with signed activations biases are stored in float."""
    return FLOAT_BIAS_LIMIT if source.signed else BIAS_LIMIT


def reshape(source: QuantizedTensor, output: QuantizedTensor) -> Operation:
    """Return the operation that reshapes a quantized tensor."""
    return Reshape((source.name,), output.name)


def _of_channels(value: Constant, channels: int) -> Floats:
    """Return a constant as float64 (C,)."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    return np.broadcast_to(array.reshape(-1), channels)
