"""Quantized LSTM: the operands of its products are quantized, its state is not.

One layer computes, for x (N, T, I), h and c (N, H) and the gates i, f, g, o in this order along the 4H axis,

    gates_t = Q(x_t) Q(W)ᵀ + b + Q(h_{t−1}) Q(U)ᵀ          W (4H, I), U (4H, H), b (4H,)
    c_t = σ(f) · c_{t−1} + σ(i) · tanh(g)
    h_t = σ(o) · tanh(c_t)

As in the public QLSTM of Wolfe & Kyrillidis, 2024, these are quantized: the input, the hidden state as an operand of
the product, both weights, and the gradient at the gates. The cell state, the hidden state passed to the next step, the
gates' nonlinearities and the bias stay in float32. Differences from theirs: weights are symmetric per output channel
and activations have an integer zero point, as everywhere in this project; x is quantized in the common range of the
chunk's T steps (one product for all), h in training in the range of each step; and the gradient of the gates is rounded
once per step, for both products.

In evaluation x and h have constant quantization parameters, from the averaged ranges, where h's range covers all steps
of a chunk. So with σ_x, z_x, σ_h, z_h constant, the two products are integer products with per-channel weight scales.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import QuantizedLinear, quantized_layer
from cpt_deploy.quantization.numerics.affine import fake_quantize, range_of
from cpt_deploy.quantization.numerics.gradients import with_quantized_gradient
from cpt_deploy.quantization.numerics.stochastic_rounding import mix_into
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role

State = tuple[Tensor, Tensor]
"""Hidden and cell state, (1, N, H) float32 each, as in `nn.LSTM`."""


class QuantizedLSTM(nn.Module):
    """One LSTM layer, called as `nn.LSTM(batch_first=True)`: (N, T, I), ((1, N, H), (1, N, H)) to (N, T, H), state.

    Args:
        input_layer: W and b; its input is quantized by `input_quantizer`.
        hidden_layer: U; its input is quantized by `hidden_quantizer`.
        momentum: Weight of a new batch in the moving average of the ranges.
    """

    def __init__(self, input_layer: QuantizedLinear, hidden_layer: QuantizedLinear, momentum: float) -> None:
        super().__init__()
        precision, role = input_layer.precision, input_layer.role
        self.input_quantizer = ActivationQuantizer(precision, role, momentum)
        self.input_layer = input_layer
        self.hidden_quantizer = ActivationQuantizer(precision, role, momentum)
        self.hidden_layer = hidden_layer
        self.hidden_size = hidden_layer.in_features

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the hidden states of all steps and the state after the last one."""
        h, c = state[0][0], state[1][0]
        steps = self.input_quantizer(x).transpose(0, 1)
        projected = functional.linear(steps, self.input_layer.quantized_weight, self.input_layer.bias)
        weight = self.hidden_layer.quantized_weight
        quantizer = _HiddenQuantizer(self.hidden_quantizer)
        outputs = []
        for number, inward in enumerate(projected.unbind(0)):
            gates = inward + functional.linear(quantizer(h), weight)
            h, c = _cell(self._with_quantized_gradient(gates, number), c)
            outputs.append(h)
        quantizer.finish()
        return torch.stack(outputs, dim=1), (h[None], c[None])

    def _with_quantized_gradient(self, gates: Tensor, number: int) -> Tensor:
        precision = self.input_layer.precision
        if not (self.training and precision.quantizes_gradients):
            return gates
        seed = mix_into(precision.seeds[self.input_layer.index], number)
        return with_quantized_gradient(gates, precision.get_buffer("gradient_quant_max"), seed)


def _cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class _HiddenQuantizer:
    """Quantizes the hidden state of each step of a chunk, and updates its range once per chunk."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.quantizer = quantizer
        self.observes = quantizer.training
        self.quantizes = quantizer.precision.quantizes_activations(quantizer.role)
        self.ends: list[tuple[Tensor, Tensor]] = []
        self.kept = quantizer.kept_qparams()

    def __call__(self, h: Tensor) -> Tensor:
        if self.observes:
            self.quantizer.current = range_of(h)
            self.ends.append(self.quantizer.current)
            return self.quantizer.quantize(h, self.quantizer.role)
        return fake_quantize(h, *self.kept) if self.quantizes else h

    def finish(self) -> None:
        """Update the range with the min and max over all steps."""
        if self.observes:
            lows, highs = zip(*self.ends, strict=True)
            self.quantizer.current = torch.stack(lows).amin(), torch.stack(highs).amax()
            if not self.quantizer.deferred:
                self.quantizer.observe(*self.quantizer.current)
        else:
            self.quantizer.current = (self.quantizer.low, self.quantizer.high)


def quantized_lstm(lstm: nn.LSTM, precision: PrecisionState, role: Role, index: int, momentum: float) -> QuantizedLSTM:
    """Return the quantized layer for a float LSTM of one layer and one direction, with `batch_first`.

    The weights are shared, not copied; the sum of `nn.LSTM`'s two biases becomes one bias. The layers get the indices
    `index` and `index + 1`.
    """
    hidden = lstm.hidden_size
    inward = nn.Linear(lstm.input_size, 4 * hidden, device="meta")
    onward = nn.Linear(hidden, 4 * hidden, bias=False, device="meta")
    own = lstm.get_parameter
    inward.weight, onward.weight = own("weight_ih_l0"), own("weight_hh_l0")
    inward.bias = nn.Parameter((own("bias_ih_l0") + own("bias_hh_l0")).detach().clone())
    layers = [quantized_layer(layer, precision, role, index + place) for place, layer in enumerate((inward, onward))]
    assert isinstance(layers[0], QuantizedLinear)
    assert isinstance(layers[1], QuantizedLinear)
    return QuantizedLSTM(layers[0], layers[1], momentum).train(lstm.training)
