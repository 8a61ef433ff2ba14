"""The integer LSTM language model: products on quantized values, gates in float32.

The arithmetic is that of the exported graph, operation by operation, so that from the same quantized values each sum is
the same integer; sigmoid and tanh differ between libraries in their last digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.language.model import State
from cpt_deploy.integer.language.parts import (
    Arrays,
    Floats,
    IntegerLinear,
    IntegerTable,
    Trace,
    arrays_of,
    frozen_linear,
    frozen_product,
    frozen_table,
)
from cpt_deploy.models.language.heads import SoftmaxHead
from cpt_deploy.models.language.lstm import LstmLanguageModel
from cpt_deploy.quantization.language import QuantizedLanguageModel, QuantizedLSTM
from cpt_deploy.quantization.state.scheduled_model import WeightBits


@dataclass(frozen=True, eq=False)
class IntegerLstm:
    """The frozen model; its state is h and c, float32 (layers, N, H) each.

    Args:
        table: The embedding.
        layers: For each layer, the product of its input, with the bias, and the product of its hidden state.
        head: Product from the last layer's hidden state to logits.
    """

    table: IntegerTable
    layers: tuple[tuple[IntegerLinear, IntegerLinear], ...]
    head: IntegerLinear

    kind: ClassVar[str] = "lstm"
    context: ClassVar[None] = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.head.codes)

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.layers[0][1].codes.shape[1])

    def tables(self) -> tuple[IntegerTable, ...]:
        """Return the one embedding."""
        return (self.table,)

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order of execution."""
        return (*(linear for layer in self.layers for linear in layer), self.head)

    def initial_state(self, batch: int) -> State:
        """Return zeros."""
        shape = (len(self.layers), batch, self.hidden)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def run(
        self, tokens: npt.NDArray[np.int64], state: State | None = None, trace: Trace | None = None
    ) -> tuple[Floats, State]:
        """Return logits, float32 (N, T, V), and the state after the last token.

        Args:
            tokens: int64 (N, T).
            state: The state before; zeros by default.
            trace: Records the integers; those of the layers are (T, N, …), those of the head (N, T, …).
        """
        h, c = self.initial_state(len(tokens)) if state is None else state
        x = self.table(tokens.T)
        ends = []
        for (inward, onward), h_layer, c_layer in zip(self.layers, h, c, strict=True):
            x, *end = _layer(inward, onward, x, h_layer, c_layer, trace)
            ends.append(end)
        features = np.ascontiguousarray(x.transpose(1, 0, 2))
        logits = self.head(features, trace)
        hidden, cell = zip(*ends, strict=True)
        return logits, (np.stack(hidden), np.stack(cell))

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        return arrays_of([*self.tables(), *self.linears()])

    def describe(self) -> dict[str, Any]:
        """Return the model's metadata as JSON types."""
        return {
            "type": self.kind,
            "table": self.table.name,
            "layers": [[linear.describe() for linear in layer] for layer in self.layers],
            "head": self.head.describe(),
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerLstm":
        """Rebuild it from the results of `describe` and `arrays`.

        Raises:
            KeyError: If something is missing.
        """
        layers = []
        for entries in description["layers"]:
            inward, onward = (IntegerLinear.from_arrays(entry, arrays) for entry in entries)
            layers.append((inward, onward))
        return cls(
            table=IntegerTable.from_arrays(description["table"], arrays),
            layers=tuple(layers),
            head=IntegerLinear.from_arrays(description["head"], arrays),
        )


def freeze_lstm(
    model: QuantizedLanguageModel, *, weight_bits: WeightBits = None, activation_bits: int | None = None
) -> IntegerLstm:
    """Freeze a trained LSTM language model to integers.

    Args:
        model: The model, calibrated at the bits to be exported.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name; None is max_bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.

    Raises:
        ConversionError: If it is another model, or its bits are more than 8.
        UsageError: If bits are out of range.
    """
    network = model.network
    if not isinstance(network, LstmLanguageModel) or not isinstance(network.head, SoftmaxHead):
        raise ConversionError(f"Expected an LSTM language model, but got {type(network).__name__}")
    with model.at_max_bits(weight_bits, activation_bits):
        layers = []
        for number, layer in enumerate(network.layers):
            assert isinstance(layer, QuantizedLSTM)
            inward = frozen_linear(f"layers.{number}.input_layer", layer.input_layer, layer.input_quantizer)
            onward = frozen_linear(f"layers.{number}.hidden_layer", layer.hidden_layer, layer.hidden_quantizer)
            layers.append((inward, onward))
        return IntegerLstm(
            table=frozen_table("embedding", network.embedding),
            layers=tuple(layers),
            head=frozen_product("head.decoder", network.head.decoder),
        )


def _layer(
    inward: IntegerLinear, onward: IntegerLinear, x: Floats, h: Floats, c: Floats, trace: Trace | None
) -> tuple[Floats, Floats, Floats]:
    """Return the hidden states of all steps, (T, N, H), and h and c after the last one."""
    projected = inward(x, trace)
    outputs, codes, sums = [], [], []
    for step in projected:
        codes.append(onward.qparams.encode(h))
        sums.append(onward.accumulate(codes[-1]))
        h, c = cell(step + onward.scaled(sums[-1]), c)
        outputs.append(h)
    if trace is not None:
        trace.codes[onward.name], trace.sums[onward.name] = np.stack(codes), np.stack(sums)
    return np.stack(outputs), h, c


def cell(gates: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Return h and c after a step, (N, H) each, from the gates i, f, g, o, (N, 4H)."""
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _sigmoid(x: Floats) -> Floats:
    half = np.float32(0.5)
    return np.asarray(np.tanh(x * half) * half + half, np.float32)
