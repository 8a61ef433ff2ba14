"""The CPT model: a traced network whose bits are one shared state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, fx, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.config import LEAST_BITS, MOST_BITS, QuantizationConfig
from cpt_deploy.quantization.edges import EdgeQuantizer
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.precision_state import PrecisionState, Role
from cpt_deploy.quantization.products import Compute, choose_compute
from cpt_deploy.quantization.program import TrainingProgram
from cpt_deploy.quantization.segments import Engine

#: Codes of more bits fit neither a byte nor the significand of bfloat16.
CODE_BITS = 8

WeightBits = int | Mapping[str, int] | None
"""Bits of the cycling layers' weights; or bits by layer name, where a layer not named has the upper bound; or None for
the upper bound everywhere."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantized layer of a model.

    Attributes:
        name: Its module path.
        macs: Multiply-accumulates per sample in forward.
        role: "cycle" or "hold" (the upper bound).
        weights: Number of weights, without the bias.
    """

    name: str
    macs: int
    role: Role
    weights: int


class QuantizedModel(nn.Module):
    """A model made by `prepare`; call it as the float model. Input (N, *input_shape), output (N, classes).

    Attributes:
        network: The traced graph with its layers and edge quantizers.
        precision: The current bits.
        config: What it was prepared with.
        input_shape: Shape of one input without the batch dimension.
        compute: How training steps compute, see `products.Compute`; evaluation is always module by module.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        precision: PrecisionState,
        config: QuantizationConfig,
        input_shape: tuple[int, ...],
        layers: list[LayerInfo],
    ) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.config = config
        self.input_shape = input_shape
        self._layers = layers
        self.compute: Compute = "auto"
        self._program: TrainingProgram | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits at the present bits."""
        engine = self._engine(x)
        if engine is not None:
            self._program = self._program or TrainingProgram(self.network, self.input_shape)
            if self._program.fits():
                return self._program(x, engine)
        logits: Tensor = self.network(x)
        return logits

    def _engine(self, x: Tensor) -> Engine | None:
        """Return what computes a training step on codes, or None where modules compute one by one."""
        plain = (
            x.device.type == "cpu" and x.dtype in (torch.float32, torch.int64) and not torch.is_autocast_enabled("cpu")
        )
        if not (self.training and torch.is_grad_enabled() and plain and self.precision.most_bits <= CODE_BITS):
            return None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return None  # segments do not share ranges and statistics with other processes; modules do
        chosen = active()
        compute = choose_compute(self.compute, native=chosen.native)
        if compute == "modules":
            return None
        return Engine(chosen.kernels, torch.bfloat16 if compute == "bf16" else torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the program out of copies: it is made anew from the copy's modules."""
        return {**self.__dict__, "_program": None}

    def layers(self) -> list[LayerInfo]:
        """Return the quantized layers in the order of the graph."""
        return list(self._layers)

    def edges(self) -> Iterator[tuple[str, EdgeQuantizer]]:
        """Yield name and quantizer of every edge, in the order of the graph."""
        for name, module in self.network.get_submodule("edges").named_children():
            assert isinstance(module, EdgeQuantizer)
            yield name, module

    def set_bits(self, forward: int, backward: int) -> None:
        """Set the bits of all cycling weights and activations, and of the gradients."""
        self.precision.set(weights=forward, activations=forward, gradients=backward)

    def set_step(self, step: int, first_sample: int = 0) -> None:
        """Tell the training step, which seeds the gradients' stochastic rounding.

        Args:
            step: Its number.
            first_sample: Where in the whole batch the part begins that this process has; 0 if it has all of it.
        """
        self.precision.step, self.precision.first_sample = step, first_sample

    def layer_bits(self, weight_bits: WeightBits = None) -> dict[str, int]:
        """Return the bits of each layer's weights by the layer's name, in the order of the graph.

        Raises:
            UsageError: If bits are out of range, or given for a layer that the model does not have.
        """
        upper = self.precision.upper
        if not isinstance(weight_bits, Mapping):
            return {layer.name: upper if layer.role == "hold" else weight_bits or upper for layer in self._layers}
        names = [layer.name for layer in self._layers]
        for name, bits in weight_bits.items():
            if not LEAST_BITS <= bits <= MOST_BITS:
                raise UsageError(f"Expected bits of {name} in [{LEAST_BITS}, {MOST_BITS}], but got {bits}")
            if name not in names:
                near = get_close_matches(name, names, n=1)
                raise UsageError(
                    f"Expected bits for layers of the model, but got some for {name!r}",
                    hint=f"did you mean {near[0]}?" if near else "the layers are " + ", ".join(names),
                )
        return {name: weight_bits.get(name, upper) for name in names}

    @contextmanager
    def upper_bound(self, weight_bits: WeightBits = None, activation_bits: int | None = None) -> Iterator[None]:
        """Run at the upper bound, or at the bits that are given; the bits before are restored afterwards.

        Args:
            weight_bits: Bits of the cycling weights, or of single layers by name, instead of the upper bound's.
            activation_bits: Bits of the cycling activations instead of the upper bound's.

        Raises:
            UsageError: If bits are out of range, or given for a layer that the model does not have.
        """
        state = self.precision
        before = (state.weight_bits["cycle"], state.activation_bits["cycle"], state.gradient_bits)
        own_before, own = state.own_weight_bits, dict[int, int]()
        if isinstance(weight_bits, Mapping):
            own = dict(enumerate(self.layer_bits(weight_bits).values()))  # a layer's index is its place
            weight_bits = None
        state.set(weights=weight_bits or state.upper, activations=activation_bits or state.upper, gradients=before[2])
        state.own_weight_bits = own
        try:
            yield
        finally:
            state.set(weights=before[0], activations=before[1], gradients=before[2])
            state.own_weight_bits = own_before
