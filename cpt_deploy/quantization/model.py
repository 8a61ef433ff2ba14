"""The CPT model: a traced network whose bits are one shared state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, fx, nn

from cpt_deploy.quantization.config import QuantizationConfig
from cpt_deploy.quantization.edges import EdgeQuantizer
from cpt_deploy.quantization.precision_state import PrecisionState, Role


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantized layer of a model.

    Attributes:
        name: Its module path.
        macs: Multiply-accumulates per sample in forward.
        role: "cycle" or "hold" (the upper bound).
    """

    name: str
    macs: int
    role: Role


class QuantizedModel(nn.Module):
    """A model made by `prepare`; call it as the float model. Input (N, *input_shape), output (N, classes).

    Attributes:
        network: The traced graph with its layers and edge quantizers.
        precision: The current bits.
        config: What it was prepared with.
        input_shape: Shape of one input without the batch dimension.
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits at the present bits."""
        logits: Tensor = self.network(x)
        return logits

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

    def set_step(self, step: int) -> None:
        """Tell the training step, which seeds the gradients' stochastic rounding."""
        self.precision.step = step

    @contextmanager
    def upper_bound(self, weight_bits: int | None = None) -> Iterator[None]:
        """Run at the upper bound inside the context; the bits before are restored after it.

        Args:
            weight_bits: Bits of the cycling weights instead of the upper bound's.
        """
        state = self.precision
        before = (state.weight_bits["cycle"], state.activation_bits["cycle"], state.gradient_bits)
        state.set(weights=weight_bits or state.upper, activations=state.upper, gradients=before[2])
        try:
            yield
        finally:
            state.set(weights=before[0], activations=before[1], gradients=before[2])
