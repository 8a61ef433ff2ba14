"""Recurrent layers in float, as ONNX's LSTM and GRU: for the float32 file of a network.

ONNX has the gates in another order than torch: i, o, f, g for an LSTM, and z, r, n for a GRU.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from onnxscript import opset18 as op
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.quantization.modules.recurrent import Kind, QuantizedRecurrent, State, run_steps

#: Places of torch's gates in ONNX's order; each is its own inverse but for the LSTM's, see `_TO_TORCH`.
_TO_ONNX: dict[Kind, tuple[int, ...]] = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_TO_TORCH: dict[Kind, tuple[int, ...]] = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}


@torch.library.custom_op("cpt_deploy::float_recurrent", mutates_args=())
def _float_recurrent(x: Tensor, state: list[Tensor], w: Tensor, r: Tensor, b: Tensor, reverse: bool) -> list[Tensor]:
    """Run a layer, (T, N, I) and its state to (T, N, H) and the state after it; weights are in ONNX's form."""
    cell: Kind = "lstm" if len(state) == 2 else "gru"
    w, r, b, d = (_in_order(part, _TO_TORCH[cell]) for part in (w[0], r[0], *b[0].chunk(2)))
    projected = functional.linear(x, w, b)
    result = run_steps(cell, projected, tuple(state), lambda h, _: functional.linear(h, r, d), reverse)
    return [part.clone() for part in result]  # an operator's results are no views of its inputs


@_float_recurrent.register_fake
def _(x: Tensor, state: list[Tensor], w: Tensor, r: Tensor, b: Tensor, reverse: bool) -> list[Tensor]:
    return [x.new_empty(*x.shape[:2], r.shape[2]), *(torch.empty_like(part) for part in state)]


class FloatRecurrent(nn.Module):
    """A recurrent layer without quantizers; parameters are copied.

    Args:
        layer: The quantized layer.
    """

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, layer: QuantizedRecurrent) -> None:
        super().__init__()
        self.reverse = layer.reverse
        order = _TO_ONNX[layer.kind]
        products = (layer.input_layer, layer.hidden_layer)
        w, r = (_in_order(product.float_weight.detach(), order)[None] for product in products)
        biases = [r.new_zeros(r.shape[1]) if p.bias is None else _in_order(p.bias.detach(), order) for p in products]
        self.register_buffer("w", w)
        self.register_buffer("r", r)
        self.register_buffer("b", torch.cat(biases)[None])

    def forward(self, x: Tensor, *state: Tensor) -> State:
        """Return the hidden states of all steps, and the state after the last one."""
        return tuple(torch.ops.cpt_deploy.float_recurrent(x, list(state), self.w, self.r, self.b, self.reverse))


def _in_order(values: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = values.chunk(len(order))
    return torch.cat([gates[place] for place in order])


def write_recurrent(x: Any, state: Any, w: Any, r: Any, b: Any, reverse: bool) -> list[Any]:
    """Write a call of the operator as ONNX, for `torch.onnx`."""
    direction: Literal["forward", "reverse"] = "reverse" if reverse else "forward"
    axes: list[Any] = [op.Constant(value_ints=[axis]) for axis in (0, 1)]
    first, second = axes
    before = [op.Unsqueeze(part, first) for part in state]
    size = int(r.shape[2])
    if len(before) == 2:
        made, *after = op.LSTM(x, w, r, b, None, *before, direction=direction, hidden_size=size)
    else:
        made, *after = op.GRU(x, w, r, b, None, *before, direction=direction, hidden_size=size, linear_before_reset=1)
    return [op.Squeeze(made, second), *(op.Squeeze(part, first) for part in after)]


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.cpt_deploy.float_recurrent.default: write_recurrent
}
"""How `torch.onnx` writes the operator."""
