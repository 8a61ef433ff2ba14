"""Execute the steps of a recurrent layer: the product of the hidden state on integers, the gates in float32."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.integer import arithmetic
from cpt_deploy.integer.operations import QuantizedTensor, Recurrent
from cpt_deploy.quantization.modules.recurrent import run_steps


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
