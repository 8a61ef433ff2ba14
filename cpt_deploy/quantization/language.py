"""Convert language models to train with cyclic precision, by replacing the layers of a float network.

Every Embedding, LSTM and Linear of the network becomes a quantized layer; a Linear gets a quantizer of its input. The
operations between them (attention's products, LayerNorm, softmax, dropout and sums) stay in float32: onnxruntime's
integer kernels for transformers have uint8 inputs and float outputs, and quantized attention products gained nothing
there. So, unlike in `prepare`, no graph is traced, and no activations except the layers' inputs are quantized.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import QuantizedLinear, quantized_layer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent, RecurrentLayer, quantized_recurrent
from cpt_deploy.quantization.numerics.stochastic_rounding import mix_into
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role
from cpt_deploy.quantization.state.scheduled_model import LayerInfo, ScheduledModel

State = tuple[Tensor, ...]
"""State of a network after the previous tokens; the batch is axis 1 for an LSTM, axis 0 for a Transformer."""


class Score(NamedTuple):
    """Losses and hits of a model on tokens whose successors are known.

    Args:
        losses: Negative log-likelihood of each target that is to be predicted, in nats, float32.
        hits: Number of targets that are the most likely token, 0-dim; with bands, those found without computing a band.
        targets: Number of targets.
        state: Initial state of the next chunk of the text: the state after the last token, empty if the model carries
            none.
    """

    losses: Tensor
    hits: Tensor
    targets: int
    state: State | None


class LanguageNetwork(Protocol):
    """Interface that `prepare_language_model` requires of a network, which is an `nn.Module`."""

    #: Number of different tokens.
    vocabulary: int
    #: Maximum number of past and present tokens together, or None without a limit.
    context: int | None
    #: Whether the state after one chunk of a text is the initial state of the next, in training and evaluation.
    carries_state: bool
    #: The first and the last layer, which can stay at max_bits.
    embedding: nn.Module
    head: nn.Module

    def initial_state(self, batch: int) -> State:
        """Return the state before the first token."""

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the head's input, (N, T, F), for tokens, int64 (N, T), and the state after them."""

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Return log-probabilities of all tokens, (..., vocabulary), for features (..., F)."""

    def losses(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return negative log-likelihoods, (n,), and the number of hits, for features (n, F) and targets int64 (n,)."""


class InputQuantizedLinear(nn.Module):
    """A Linear with the quantizer of its input: (..., I) to (..., O)."""

    def __init__(self, layer: QuantizedLinear, momentum: float) -> None:
        super().__init__()
        self.quantizer = ActivationQuantizer(layer.precision, layer.role, momentum)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Quantize the input and multiply by the quantized weight."""
        y: Tensor = self.layer(self.quantizer(x))
        return y


class QuantizedLSTM(QuantizedRecurrent):
    """One LSTM layer with the quantizer of its input, called as `nn.LSTM(batch_first=True)`."""

    def __init__(self, lstm: nn.LSTM, precision: PrecisionState, role: Role, index: int, momentum: float) -> None:
        super().__init__("lstm", *_products_of(lstm, precision, role, index, momentum), momentum)
        self.input_quantizer = ActivationQuantizer(precision, role, momentum)

    def forward(self, x: Tensor, *state: Any) -> Any:
        """Return the hidden states of all steps and the state after the last one."""
        y, h, c = super().forward(self.input_quantizer(x).transpose(0, 1), state[0][0][0], state[0][1][0])
        return y.transpose(0, 1), (h[None], c[None])


def _products_of(
    lstm: nn.LSTM, precision: PrecisionState, role: Role, index: int, momentum: float
) -> tuple[QuantizedLinear, QuantizedLinear]:
    layer = quantized_recurrent(RecurrentLayer(lstm, 0, reverse=False), precision, role, index, momentum)
    layer.join_biases()
    return layer.input_layer, layer.hidden_layer


class QuantizedLanguageModel(ScheduledModel):
    """A model made by `prepare_language_model`.

    Attributes:
        network: The network with its quantized layers.
    """

    def __init__(
        self, network: nn.Module, precision: PrecisionState, config: QuantizationConfig, layers: list[LayerInfo]
    ) -> None:
        super().__init__(precision, config, layers)
        self.network = network

    @property
    def _language(self) -> LanguageNetwork:
        return cast(LanguageNetwork, self.network)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self._language.vocabulary

    @property
    def context(self) -> int | None:
        """Maximum number of past and present tokens together, or None without a limit."""
        return self._language.context

    @property
    def carries_state(self) -> bool:
        """Whether the state after one chunk of a text is the initial state of the next."""
        return self._language.carries_state

    def initial_state(self, batch: int) -> State:
        """Return the state before the first token, for a batch of `batch` rows."""
        return self._language.initial_state(batch)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return log-probabilities of each next token, (N, T, vocabulary), and the state after the last one.

        Args:
            tokens: int64 (N, T).
            state: State before the tokens; the initial state by default.

        Raises:
            UsageError: If the tokens and those before them are more than the model's context.
        """
        features, state = self._features(tokens, state)
        self.watch_step(features)
        return self._language.log_probabilities(features), state

    def score(self, tokens: Tensor, targets: Tensor, state: State | None = None) -> Score:
        """Return the losses and hits of the model on the tokens that follow.

        Args:
            tokens: int64 (N, T).
            targets: int64 (N, T), negative where nothing is to be predicted.
            state: State before the tokens; the initial state by default.

        Raises:
            UsageError: If the tokens are more than the model's context.
        """
        features, state = self._features(tokens, state)
        self.watch_step(features)
        features, targets = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
        if bool((targets < 0).any()):
            wanted = targets >= 0
            features, targets = features[wanted], targets[wanted]
        losses, hits = self._language.losses(features, targets)
        return Score(losses, hits, len(targets), state if self.carries_state else None)

    def training_module(self) -> nn.Module:
        """Return a module whose forward is `score`."""
        return _Scorer(self)

    def set_step(self, step: int, first_sample: int = 0) -> None:
        """Set the training step, see `ScheduledModel`.

        Layers see the tokens of a part as one sequence, so the seed makes the noise of the parts differ.
        """
        super().set_step(step)
        if first_sample:
            self.precision.seeds.copy_(mix_into(self.precision.seeds, first_sample))

    def rows_of(self, state: State, rows: slice) -> State:
        """Return the state of some rows of a batch."""
        axes = zip(state, self._batch_axes(), strict=True)
        return tuple(tensor.narrow(axis, rows.start, rows.stop - rows.start) for tensor, axis in axes)

    def joined(self, states: Sequence[State]) -> State:
        """Return the state of a batch, given those of its parts in their order."""
        parts = zip(*states, strict=True)
        return tuple(torch.cat(part, axis) for part, axis in zip(parts, self._batch_axes(), strict=True))

    def _batch_axes(self) -> list[int]:
        """Return the batch axis of each tensor of the state: the one that grows with the number of rows."""
        shapes = zip(*(tuple(tensor.shape for tensor in self.initial_state(rows)) for rows in (1, 2)), strict=True)
        return [[one == two for one, two in zip(*pair, strict=True)].index(False) for pair in shapes]

    def _features(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        length = tokens.shape[1]
        if state is None:
            state = self.initial_state(len(tokens))
        if self.context is not None:
            before = 0 if self.carries_state else state[0].shape[2]
            if length + before > self.context:
                raise UsageError(
                    f"Expected at most {self.context} tokens, the model's context, but got {length + before}",
                    hint="lower data.text.sequence or raise model.args.context",
                )
        return self._language.features(tokens, state)


class _Scorer(nn.Module):
    """A model whose forward is `score`: data parallelism replicates the forward of a module."""

    def __init__(self, model: QuantizedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, state: State | None) -> Score:
        """See `QuantizedLanguageModel.score`."""
        return self.model.score(tokens, targets, state)


def prepare_language_model(network: nn.Module, config: QuantizationConfig) -> QuantizedLanguageModel:
    """Convert a float network to one that trains with cyclic precision.

    Args:
        network: See `LanguageNetwork`; it is copied, not changed. Parameters that layers share stay shared.
        config: Bounds, and whether `embedding` and `head` stay at max_bits.

    Returns:
        The model, at max_bits.

    Raises:
        ConversionError: If it has an LSTM without a quantized form, or no layer at all.
    """
    network = copy.deepcopy(network)
    precision = PrecisionState(config.max_bits, config.seed)
    layers: list[LayerInfo] = []
    for name, module in list(_replaceable(network)):
        held = config.ends == "fixed" and name.partition(".")[0] in ("embedding", "head")
        role: Role = "fixed" if held else "scheduled"
        index = len(layers)
        if isinstance(module, nn.Embedding):
            replaced: nn.Module = quantized_layer(module, precision, role, index)
            layers.append(LayerInfo(name, 0, role, module.weight.numel()))
        elif isinstance(module, nn.LSTM):
            _check_lstm(name, module)
            replaced = QuantizedLSTM(module, precision, role, index, config.range_momentum)
            for part, weight in (("input_layer", "weight_ih_l0"), ("hidden_layer", "weight_hh_l0")):
                count = module.get_parameter(weight).numel()
                layers.append(LayerInfo(f"{name}.{part}", count, role, count))
        else:
            layer = quantized_layer(module, precision, role, index)
            assert isinstance(layer, QuantizedLinear)
            replaced = InputQuantizedLinear(layer, config.range_momentum)
            layers.append(LayerInfo(f"{name}.layer", layer.weight_shape.numel(), role, layer.weight_shape.numel()))
        replaced.train(module.training)
        network.set_submodule(name, replaced)
    if not layers:
        raise ConversionError("Expected a network with at least one Embedding, LSTM or Linear layer, but got none")
    model = QuantizedLanguageModel(network, precision, config, layers)
    model.train(network.training)
    return model.to(next(network.parameters()).device)


def _replaceable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers in the order of execution: embedding, layers between, head."""
    kinds: tuple[type[nn.Module], ...] = (nn.Embedding, nn.LSTM, nn.Linear)
    found = [(name, module) for name, module in network.named_modules() if type(module) in kinds]
    order = {"embedding": 0, "head": 2}
    return iter(sorted(found, key=lambda entry: order.get(entry[0].partition(".")[0], 1)))


def _check_lstm(name: str, lstm: nn.LSTM) -> None:
    expected = {"num_layers": 1, "bidirectional": False, "batch_first": True, "bias": True, "proj_size": 0}
    got: dict[str, Any] = {key: getattr(lstm, key) for key in expected}
    wrong = [f"{key}={value}" for key, value in got.items() if value != expected[key]]
    if wrong:
        raise ConversionError(
            f"Expected LSTMs of one layer and one direction with a bias and batch_first, but got {', '.join(wrong)} in "
            f"{name}",
            hint="several layers are several modules",
        )


def detached(state: State) -> State:
    """Return a state detached from autograd: truncated backpropagation through time ends there."""
    return tuple(tensor.detach() for tensor in state)
