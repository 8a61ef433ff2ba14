"""The layers of an executed graph: products of integers with int8 weights, and the steps of recurrent layers."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.integer import arithmetic
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Convolution, Recurrent, WeightedOperation, adds_real_bias
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.modules.recurrent import run_steps

#: float32 represents all integers up to this magnitude.
EXACT_FLOAT32 = 2**24


def fits_float32(operation: WeightedOperation, source: QuantizedTensor) -> bool:
    """Return whether float32 represents every partial sum of a layer exactly."""
    reach = max(source.zero_point - source.quant_min, source.quant_max - source.zero_point)
    sums = np.abs(operation.executed_codes.astype(np.int64)).reshape(len(operation.codes), -1).sum(axis=1)
    worst = sums * reach + np.abs(operation.bias.astype(np.int64))
    return bool(worst.max(initial=0) < EXACT_FLOAT32)


class Layer(nn.Module):
    """A convolution or a fully connected layer on integers, (N, ...) → (N, ...), with int8 weights.

    `y = rint(clamp(f32(acc) · m)) + z_y` with `m = f32(f32(s_x·s_w) / s_y)`; acc is exact and includes the bias.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor

    def __init__(self, operation: WeightedOperation, graph: IntegerGraph) -> None:
        super().__init__()
        self.operation = operation
        self.source, self.output = graph.tensors[operation.inputs[0]], graph.tensors.get(operation.output)
        self.dtype = torch.float32 if fits_float32(operation, self.source) else torch.float64
        # f32(f32(s_x · s_w) / s_y), in this order; one per output channel, for all positions
        multiplier = np.float32(self.source.scale) * operation.scales
        if self.output is not None:
            multiplier = multiplier / np.float32(self.output.scale)
        per_channel = (-1, *([1] * (operation.codes.ndim - 2)))
        self.register_buffer("weight", torch.from_numpy(operation.executed_codes.copy()))
        self.register_buffer("bias", torch.from_numpy(operation.bias.astype(np.int32)))
        self.register_buffer("multiplier", torch.from_numpy(multiplier.astype(np.float32).reshape(per_channel)))

    def forward(self, x: Tensor) -> Tensor:
        """Return quantized values, or real ones if the output is not quantized."""
        dtype, weight, bias, multiplier = self.dtype, self.weight, self.bias, self.multiplier
        if x.device.type != "cpu":
            dtype = torch.float64  # other devices may use TF32 or Winograd convolutions, which are not exact
            weight, bias, multiplier = (tensor.to(x.device) for tensor in (weight, bias, multiplier))
        centred, weight, bias = (x - self.source.zero_point).to(dtype), weight.to(dtype), bias.to(dtype)
        if isinstance(self.operation, Convolution):
            accumulator = arithmetic.convolve(centred, weight, bias, self.operation)
        else:
            accumulator = functional.linear(centred, weight, bias)
        if self.output is None and not adds_real_bias(self.operation, self.source):
            return accumulator.to(torch.float32) * multiplier
        if self.output is None:
            return (accumulator - bias).to(torch.float32) * multiplier + bias.to(torch.float32) * multiplier
        return arithmetic.requantize(accumulator, multiplier, self.output)


class Steps(NamedTuple):
    """What the steps of a layer compute.

    Attributes:
        result: The hidden states of all steps, float32 (T, N, H), and the state after the last one, (N, H) each.
        hidden: Quantized hidden state that each step reads, integers in float32 (T, N, H).
        product: Its product with the weights, with the bias, float32 (T, N, G·H).
    """

    result: tuple[Tensor, ...]
    hidden: Tensor
    product: Tensor


class RecurrentSteps(nn.Module):
    """The steps of a recurrent layer, with int8 weights.

    The product of a step is `f32(Σ (q − z)·w) · f32(s·s_w) + b`; the sum is exact.

    Args:
        operation: The operation.
        hidden: The quantized hidden state.
        dtype: A dtype in which the sums are exact.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor

    def __init__(self, operation: Recurrent, hidden: QuantizedTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.cell, self.reverse, self.hidden, self.dtype = operation.cell, operation.reverse, hidden, dtype
        multiplier = torch.from_numpy(operation.scales.copy()) * torch.tensor(hidden.scale, dtype=torch.float32)
        bias = torch.from_numpy(operation.bias.copy())
        self.register_buffer("weight", torch.from_numpy(operation.executed_codes.copy()))
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("bias", bias.to(torch.float32) * multiplier)

    def forward(self, projected: Tensor, *state: Tensor, given: Tensor | None = None) -> Steps:
        """Run the steps.

        Args:
            projected: Products of the inputs with their bias, float32 (T, N, G·H).
            state: The state before, float32 (N, H) each.
            given: Quantized hidden states (T, N, H) of another runtime, to be multiplied instead of the own.
        """
        weight, bias, multiplier = (tensor.to(projected.device) for tensor in (self.weight, self.bias, self.multiplier))
        dtype = self.dtype if projected.device.type == "cpu" else torch.float64
        weight = weight.to(dtype)
        hidden: dict[int, Tensor] = {}
        products: dict[int, Tensor] = {}

        def product(h: Tensor, number: int) -> Tensor:
            hidden[number] = codes = arithmetic.quantize(h, self.hidden)
            if given is not None:
                codes = given[number].to(torch.float32)
            sums = functional.linear((codes - self.hidden.zero_point).to(dtype), weight)
            products[number] = sums.to(torch.float32) * multiplier + bias
            return products[number]

        result = run_steps(self.cell, projected, state, product, self.reverse)
        order = range(len(projected))
        return Steps(result, torch.stack([hidden[i] for i in order]), torch.stack([products[i] for i in order]))
