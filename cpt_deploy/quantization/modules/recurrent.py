"""Recurrent layers: one layer in one direction of an LSTM or a GRU, in float and quantized.

One layer computes, for steps x (T, N, I) and the state h, c (N, H), with W (G·H, I) and U (G·H, H),

    LSTM, G = 4, gates i, f, g, o in this order          GRU, G = 3, gates r, z, n in this order
        a_t = Q(x_t) Q(W)ᵀ + b + Q(h_{t−1}) Q(U)ᵀ            p_t = Q(x_t) Q(W)ᵀ + b,  q_t = Q(h_{t−1}) Q(U)ᵀ + d
        c_t = σ(a_f) · c_{t−1} + σ(a_i) · tanh(a_g)          n = tanh(p_n + σ(p_r + q_r) · q_n),  z = σ(p_z + q_z)
        h_t = σ(a_o) · tanh(c_t)                             h_t = (1 − z) · n + z · h_{t−1}

As in the public QLSTM of Wolfe & Kyrillidis, 2024, these are quantized: the input, the hidden state as an operand of
the product, both weights, and the gradient at the gates. The cell state, the hidden state passed to the next step, the
gates' nonlinearities and the biases stay in float32. Differences from theirs: weights are symmetric per output channel
and activations have an integer zero point, as everywhere in this project; x is quantized in the common range of the
chunk's T steps (one product for all), h in training in the range of each step; and the gradient of an LSTM's gates is
rounded once per step, for both products.

The quantizer of x is a node of the graph, like that of other layers; the quantizer of h is part of the layer. In
evaluation both have constant quantization parameters, from the averaged ranges, where h's range covers all steps of a
chunk. So with σ_x, z_x, σ_h, z_h constant, the two products are integer products with per-channel weight scales.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.gradients import with_quantized_gradient
from cpt_deploy.quantization.modules.layers import QuantizedLinear, quantized_layer
from cpt_deploy.quantization.numerics.affine import fake_quantize, range_of
from cpt_deploy.quantization.numerics.stochastic_rounding import mix_into, seed_from_index
from cpt_deploy.quantization.state.precision_state import PrecisionGroup, PrecisionState

Kind = Literal["lstm", "gru"]
State = tuple[Tensor, ...]
"""h and c of an LSTM, h of a GRU; float32 (N, H) each."""

GATES: dict[Kind, int] = {"lstm": 4, "gru": 3}
"""G, the number of gates."""


class RecurrentLayer(nn.Module):
    """One layer in one direction in float: steps (T, N, I) and its state to (T, N, H) and the state after them.

    Args:
        layer: The layers that it is one of; the weights are shared, not copied.
        number: Its number among them.
        reverse: Whether it reads the steps from the last to the first.
    """

    def __init__(self, layer: nn.LSTM | nn.GRU, number: int, *, reverse: bool) -> None:
        super().__init__()
        self.kind: Kind = "lstm" if isinstance(layer, nn.LSTM) else "gru"
        self.reverse = reverse
        suffix = f"l{number}" + ("_reverse" if reverse else "")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            known = layer.bias or name.startswith("weight")
            self.register_parameter(name, layer.get_parameter(f"{name}_{suffix}") if known else None)
        self.train(layer.training)

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def forward(self, x: Tensor, *state: Tensor) -> State:
        """Return the hidden states of all steps, and the state after the last one."""
        projected = functional.linear(x, self.weight_ih, self.bias_ih)
        return run_steps(
            self.kind, projected, state, lambda h, _: functional.linear(h, self.weight_hh, self.bias_hh), self.reverse
        )


class QuantizedRecurrent(nn.Module):
    """A quantized `RecurrentLayer`, which reads quantized steps.

    Args:
        kind: "lstm" or "gru".
        input_layer: W and b; its input is quantized by a node of the graph.
        hidden_layer: U and d; its input is quantized by `hidden_quantizer`.
        momentum: Weight of a new batch in the moving average of the range of h.
        reverse: Whether it reads the steps from the last to the first.
    """

    def __init__(
        self,
        kind: Kind,
        input_layer: QuantizedLinear,
        hidden_layer: QuantizedLinear,
        momentum: float,
        *,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.reverse = kind, reverse
        self.input_layer = input_layer
        self.hidden_quantizer = ActivationQuantizer(input_layer.precision, input_layer.group, momentum)
        self.hidden_layer = hidden_layer
        self.hidden_size = hidden_layer.in_features

    @property
    def group(self) -> PrecisionGroup:
        """The group of both products."""
        return self.input_layer.group

    def forward(self, x: Tensor, *state: Tensor) -> State:
        """Return the hidden states of all steps, and the state after the last one."""
        projected = functional.linear(x, self.input_layer.quantized_weight, self.input_layer.bias)
        weight, bias = self.hidden_layer.quantized_weight, self.hidden_layer.bias
        quantizer = _HiddenQuantizer(self.hidden_quantizer)
        result = run_steps(
            self.kind,
            projected,
            state,
            lambda h, _: functional.linear(quantizer(h), weight, bias),
            self.reverse,
            self._with_quantized_gradient,
        )
        quantizer.finish()
        return result

    def join_biases(self) -> None:
        """Replace the two biases of an LSTM, which are only ever added, by their sum: one parameter."""
        inward, onward = self.input_layer.bias, self.hidden_layer.bias
        if self.kind == "lstm" and inward is not None and onward is not None:
            self.input_layer.bias = nn.Parameter((inward + onward).detach().clone())
            self.hidden_layer.bias = None

    def _with_quantized_gradient(self, gates: Tensor, number: int, operand: int) -> Tensor:
        """Round the gradient of the gates of a step, or of one operand of them."""
        precision = self.input_layer.precision
        if not (self.training and precision.quantizes_gradients):
            return gates
        layer = self.hidden_layer if operand else self.input_layer
        seed = mix_into(precision.seeds[layer.index], number)
        if precision.first_sample:
            seed = seed_from_index(seed, precision.first_sample * gates.shape[1])
        return with_quantized_gradient(gates, precision.get_buffer("gradient_quant_max"), seed)


def run_steps(
    kind: Kind,
    projected: Tensor,
    state: State,
    product: Callable[[Tensor, int], Tensor],
    reverse: bool,
    gradient: Callable[[Tensor, int, int], Tensor] = lambda gates, number, operand: gates,
) -> State:
    """Run the steps of a layer, given the products of its inputs.

    Args:
        kind: "lstm" or "gru".
        projected: Products of the inputs with their bias, (T, N, G·H).
        state: The state before, (N, H) each.
        product: Returns the product of the hidden state (N, H), with its bias, for the step of a number: (N, G·H).
        reverse: Whether the steps run from the last to the first.
        gradient: Called with gates, or one operand of them, (N, G·H); the number of the step; and the operand: its
            result replaces them.

    Returns:
        The hidden states of all steps, (T, N, H), and the state after the last one.
    """
    outputs = []
    for number, inward in _steps(projected, reverse):
        onward = product(state[0], number)
        if kind == "lstm":
            state = lstm_cell(gradient(inward + onward, number, 0), state[1])
        else:
            state = gru_cell(gradient(inward, number, 0), gradient(onward, number, 1), state[0])
        outputs.append(state[0])
    if reverse:
        outputs.reverse()
    return (torch.stack(outputs), *state)


def _steps(projected: Tensor, reverse: bool) -> Iterator[tuple[int, Tensor]]:
    steps = list(enumerate(projected.unbind(0)))
    return iter(reversed(steps) if reverse else steps)


def lstm_cell(gates: Tensor, c: Tensor) -> State:
    """Return h and c after a step, (N, H) each, from the gates (N, 4·H) and c."""
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(inward: Tensor, onward: Tensor, h: Tensor) -> State:
    """Return h after a step, (N, H), from the products of input and hidden state, (N, 3·H) each, and h."""
    (r, z, n), (hr, hz, hn) = inward.chunk(3, dim=-1), onward.chunk(3, dim=-1)
    n = torch.tanh(n + torch.sigmoid(r + hr) * hn)
    z = torch.sigmoid(z + hz)
    return ((1 - z) * n + z * h,)


class _HiddenQuantizer:
    """Quantizes the hidden state of each step of a chunk, and updates its range once per chunk."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.quantizer = quantizer
        self.observes = quantizer.training
        self.quantizes = quantizer.precision.quantizes_activations(quantizer.group)
        self.ends: list[tuple[Tensor, Tensor]] = []
        self.kept = quantizer.kept_qparams()

    def __call__(self, h: Tensor) -> Tensor:
        if self.observes:
            self.quantizer.current = range_of(h)
            self.ends.append(self.quantizer.current)
            return self.quantizer.quantize(h, self.quantizer.group)
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


def quantized_recurrent(
    layer: RecurrentLayer, precision: PrecisionState, group: PrecisionGroup, index: int, momentum: float
) -> QuantizedRecurrent:
    """Return the quantized layer for a float one; the parameters are shared, not copied.

    Its two products get the indices `index` and `index + 1`.
    """
    products = []
    pairs = ((layer.weight_ih, layer.bias_ih), (layer.weight_hh, layer.bias_hh))
    for place, (weight, bias) in enumerate(pairs):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
        products.append(quantized_layer(linear, precision, group, index + place))
    inward, onward = products
    assert isinstance(inward, QuantizedLinear)
    assert isinstance(onward, QuantizedLinear)
    return QuantizedRecurrent(layer.kind, inward, onward, momentum, reverse=layer.reverse).train(layer.training)
