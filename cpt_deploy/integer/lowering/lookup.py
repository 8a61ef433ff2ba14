"""Tabulate elementwise functions: 256 results, at scales at which every runtime rounds to the same ones."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.operations import Lookup
from cpt_deploy.integer.tensors import QuantizedTensor

#: Minimum distance of a result from a rounding boundary, in steps of the output. float32 implementations of sigmoid and
#: similar functions differ from each other by some 1e-7, which is 3e-5 of a step at 8 bits.
MARGIN = 5e-4
#: Relative changes of the output's scale to try to keep the margin, in steps of 1e-4: too small to affect accuracy.
_NUDGES = [sign * step * 1e-4 for step in range(60) for sign in (1, -1)][1:]

_FUNCTIONS: dict[type[nn.Module], tuple[str, Callable[[nn.Module], tuple[float, ...]]]] = {
    # requantization: onnxruntime fuses an identity function to a table; without a function it would dequantize and
    # quantize in float
    nn.Identity: ("LeakyRelu", lambda module: (1.0,)),
    nn.ReLU: ("Relu", lambda module: ()),
    nn.ReLU6: ("Clip", lambda module: (0.0, 6.0)),
    nn.Hardtanh: ("Clip", lambda module: (float(module.min_val), float(module.max_val))),  # type: ignore[arg-type]
    nn.Sigmoid: ("Sigmoid", lambda module: ()),
    nn.Hardsigmoid: ("HardSigmoid", lambda module: (1 / 6, 0.5)),
    nn.Tanh: ("Tanh", lambda module: ()),
    nn.LeakyReLU: ("LeakyRelu", lambda module: (float(module.negative_slope),)),  # type: ignore[arg-type]
    nn.ELU: ("Elu", lambda module: (float(module.alpha),)),  # type: ignore[arg-type]
    nn.Softplus: ("Softplus", lambda module: ()),
}


def tabulate(module: nn.Module, source: QuantizedTensor, output: QuantizedTensor) -> tuple[Lookup, QuantizedTensor]:
    """Tabulate an elementwise activation function.

    Args:
        module: The activation function.
        source: The input tensor.
        output: The output tensor, with the observed range.

    Returns:
        The operation, and the output with its scale changed by a few ten-thousandths if a result would otherwise lie
        too near to a rounding boundary.

    Raises:
        ConversionError: If no scale nearby keeps the margin.
    """
    function, parameters = _FUNCTIONS[type(module)]
    codes = torch.arange(256, dtype=torch.float64) + source.quant_min
    with torch.no_grad():
        values = module((codes - source.zero_point) * source.scale).numpy()
    values = values[: 2**source.bits]
    for nudge in _NUDGES:
        moved = replace(output, scale=float(np.float32(output.scale * (1.0 + nudge))))
        positions = values / moved.scale + moved.zero_point
        inside = (positions > moved.quant_min - 1) & (positions < moved.quant_max + 1)
        to_boundary = np.abs(positions - np.floor(positions) - 0.5)
        if np.all(to_boundary[inside] > MARGIN):
            table = np.zeros(256, dtype=moved.dtype)
            table[: len(values)] = np.clip(np.rint(positions), moved.quant_min, moved.quant_max)
            return Lookup((source.name,), moved.name, function, parameters(module), table), moved
    raise ConversionError(
        f"Expected a scale near {output.scale} at which every code of {function} rounds safely, but found none",
        hint="this needs values that sit exactly between two quantized values; calibrate the model on other batches",
    )
