"""The bits of a CPT model: set, saved, restored, and watched over its steps."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from cpt_deploy.errors import CptWarning, UsageError
from cpt_deploy.quantization.state.config import QuantizationConfig, whole_bits
from cpt_deploy.quantization.state.conversion import Conversion
from cpt_deploy.quantization.state.precision_state import PrecisionGroup, PrecisionState

WeightBits = int | Mapping[str, int] | None
"""Bits of the scheduled layers' weights; or bits by layer name, where an omitted layer has max_bits; or None for
max_bits everywhere."""


BITS_KEY = "bits"
"""Where a model's state dictionary holds its bits and its step."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantized layer of a model.

    Attributes:
        name: Its module path.
        macs: Multiply-accumulates per sample in forward.
        group: "scheduled", "fixed" (always max_bits), or the name of its group.
        weights: Number of weights, without the bias.
    """

    name: str
    macs: int
    group: PrecisionGroup
    weights: int


class ScheduledModel(nn.Module):
    """The part of a `QuantizedModel` that sets its bits by a schedule.

    Its present bits and step are in its `state_dict`, under "bits".

    Args:
        precision: The current bits.
        config: The configuration that it was prepared with.
        layers: Its quantized layers; a layer's index is its position.

    Attributes:
        conversion: How it was converted, and why.
    """

    def __init__(self, precision: PrecisionState, config: QuantizationConfig, layers: list[LayerInfo]) -> None:
        super().__init__()
        self.precision = precision
        self.config = config
        self.conversion = Conversion("integers")
        self.float_layers: list[LayerInfo] = []
        self._last_step: tuple[tuple[int | None, int], int] | None = None
        self._said = False
        self._layers = layers

    def layers(self) -> list[LayerInfo]:
        """Return the quantized layers in order of execution."""
        return list(self._layers)

    def set_bits(self, forward: int, backward: int, groups: Mapping[PrecisionGroup, int] | None = None) -> None:
        """Set the bits of all scheduled weights and activations, and of the gradients.

        Args:
            forward: Bits of weights and activations; with 24 and more, those of fixed precision are in float32 too.
            backward: Bits of gradients.
            groups: Bits of groups; an omitted group has `forward`, limited to its max_bits.
        """
        self.precision.set(weights=forward, activations=forward, gradients=backward, groups=groups)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}{BITS_KEY}"] = self.precision.packed()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        key = f"{prefix}{BITS_KEY}"
        if key not in state_dict:
            missing_keys.append(key)
            return
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        try:
            self.precision.unpack(state_dict[key])
        except UsageError as error:
            error_msgs.append(str(error))

    def set_step(self, step: int, first_sample: int = 0) -> None:
        """Set the number of the training step, which seeds the gradients' stochastic rounding.

        Args:
            step: Its number.
            first_sample: Index in the whole batch of the first sample of this process; 0 if it has the whole batch.

        Raises:
            UsageError: If `step` is no whole number.
        """
        given: object = step
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise UsageError(f"Expected the number of a training step, but got {step!r}")
        self.precision.set_step(int(step), first_sample)

    def watch_step(self, result: Tensor) -> None:
        """Warn once if a training step rounds its gradients with the noise of the previous step.

        Args:
            result: The output of the step; when its gradient arrives, the step is checked.
        """
        if result.requires_grad and self.training and not self._said and not torch.compiler.is_compiling():
            result.register_hook(self._take_step)  # type: ignore[no-untyped-call]

    def _take_step(self, gradient: Tensor) -> None:
        step = (self.precision.step, self.precision.first_sample)
        weights = sum(parameter._version for parameter in self.parameters())  # grows with each change of a weight
        before, self._last_step = self._last_step, (step, weights)
        if before is None or before[0] != step or before[1] == weights or self._said:
            return
        self._said = True
        if self.precision.quantizes_gradients:
            warnings.warn(
                "two training steps have the same number, so the gradients of the second are rounded with the noise "
                "of the first: call schedule.step() after each step, or model.set_step(step) before it",
                CptWarning,
                stacklevel=2,
            )

    def layer_bits(self, weight_bits: WeightBits = None) -> dict[str, int]:
        """Return the bits of each layer's weights by the layer's name, in the order of the graph.

        Raises:
            UsageError: If bits are out of range, or given for a layer that the model does not have.
        """
        state = self.precision
        max_bits = {layer.name: state.max_bits_of(layer.group) for layer in self._layers}
        if not isinstance(weight_bits, Mapping):
            given = state.max_bits if weight_bits is None else whole_bits("weights", weight_bits)
            most = {"scheduled": given, **{group: min(given, max_bits) for group, max_bits in state.groups.items()}}
            return {layer.name: most.get(layer.group, state.max_bits) for layer in self._layers}
        names = [layer.name for layer in self._layers]
        for name, bits in weight_bits.items():
            whole_bits(name, bits)
            if name not in names:
                near = get_close_matches(name, names, n=1)
                raise UsageError(
                    f"Expected bits for layers of the model, but got some for {name!r}",
                    hint=f"did you mean {near[0]}?" if near else "the layers are " + ", ".join(names),
                )
        return {name: weight_bits.get(name, max_bits[name]) for name in names}

    @contextmanager
    def at_max_bits(self, weight_bits: WeightBits = None, activation_bits: int | None = None) -> Iterator[None]:
        """Run at max_bits, or at the given bits, inside the context; the previous bits are restored on exit.

        Args:
            weight_bits: Bits of the scheduled weights, or of single layers by name, instead of max_bits.
            activation_bits: Bits of the scheduled activations instead of max_bits.

        Raises:
            UsageError: If bits are out of range, or given for a layer that the model does not have.
        """
        state = self.precision
        before, own = state.bits(), dict[int, int]()
        if isinstance(weight_bits, Mapping):
            own = dict(enumerate(self.layer_bits(weight_bits).values()))  # a layer's index is its position
            weight_bits = None
        state.set(
            weights=weight_bits or state.max_bits,
            activations=activation_bits or state.max_bits,
            gradients=state.gradient_bits,
        )
        state.own_weight_bits = own
        try:
            yield
        finally:
            state.restore(before)
