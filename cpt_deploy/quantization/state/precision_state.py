"""The current bits of a model, in one object that all its quantizers read."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.numerics.affine import symmetric_quant_max, unsigned_quant_max
from cpt_deploy.quantization.numerics.saturation import saturation_limit
from cpt_deploy.quantization.numerics.stochastic_rounding import mix_into, mix_seed, seed_from_index
from cpt_deploy.quantization.state.config import FLOAT_BITS, MAX_INTEGER_BITS, whole_bits

PrecisionGroup = str
"""The precision group of a tensor, which determines its bits: "scheduled", "fixed", or the name of a `LayerGroup`."""

COMMON_GROUPS: tuple[PrecisionGroup, ...] = ("scheduled", "fixed")
"""The groups of every model: scheduled and fixed precision."""


class Bits(NamedTuple):
    """A snapshot of the bits of a model.

    Attributes:
        weights: Bits of weights, by group.
        activations: Bits of activations, by group.
        gradients: Bits of gradients.
        own_weights: Bits of single layers' weights that deviate from their group, by the layer's index.
    """

    weights: Mapping[PrecisionGroup, int]
    activations: Mapping[PrecisionGroup, int]
    gradients: int
    own_weights: Mapping[int, int]


class PrecisionState(nn.Module):
    """Bits of weights, activations and gradients, also as max quantized values on the model's device.

    Tensors of the group "scheduled" follow the schedule; those of "fixed" stay at max_bits; those of any other group
    follow its own schedule. Max quantized values and seeds are tensors on the device, so kernels and compiled graphs
    see new data, not new code, when bits and steps change.

    Args:
        max_bits: The max_bits of the model.
        seed: Seed of the gradients' stochastic-rounding noise.
        groups: The max_bits of each group of layers, at most `max_bits`.
    """

    gradient_quant_max: Tensor
    seeds: Tensor
    layer_seeds: Tensor

    def __init__(self, max_bits: int, seed: int, groups: Mapping[PrecisionGroup, int] | None = None) -> None:
        super().__init__()
        self.max_bits = max_bits
        self.groups: dict[PrecisionGroup, int] = dict(groups or {})
        self.seed = seed
        #: Number of the current training step, which seeds the noise; `None` until it is set.
        self.step: int | None = None
        #: Index in the whole batch of the first sample of this process.
        self.first_sample = 0
        self.weight_bits: dict[PrecisionGroup, int] = {**dict.fromkeys(COMMON_GROUPS, max_bits), **self.groups}
        self.activation_bits: dict[PrecisionGroup, int] = dict(self.weight_bits)
        self.gradient_bits = 8
        #: Whether weights keep their whole range in evaluation and freezing, though pairs of products may saturate.
        self.native = False
        #: Whether gradients are quantized at all at their current bits.
        self.quantizes_gradients = True
        self._quantizes_weights: dict[PrecisionGroup, bool] = dict.fromkeys(self.weight_bits, True)
        self._quantizes_activations: dict[PrecisionGroup, bool] = dict.fromkeys(self.weight_bits, True)
        #: Bits of single layers' weights, by the layer's index: bit allocation (mixed precision) after training.
        self.own_weight_bits: dict[int, int] = {}
        for group in self.weight_bits:
            self.register_buffer(f"weight_quant_max_{group}", torch.tensor(0.0), persistent=False)
            self.register_buffer(f"activation_quant_max_{group}", torch.tensor(0.0), persistent=False)
        self.register_buffer("gradient_quant_max", torch.tensor(0.0), persistent=False)
        self._filled: dict[str, int] = {}
        # Seeds of the noise of each layer's gradients: for the run, and for the current step.
        self.register_buffer("layer_seeds", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("seeds", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.set(weights=max_bits, activations=max_bits, gradients=self.gradient_bits)

    def set(
        self, *, weights: int, activations: int, gradients: int, groups: Mapping[PrecisionGroup, int] | None = None
    ) -> None:
        """Set the bits of all tensors of scheduled precision.

        Args:
            weights: Bits of weights; with `FLOAT_BITS` and more, those of fixed precision are in float32 as well.
            activations: Likewise of activations.
            gradients: Bits of gradients.
            groups: Bits of the groups' weights and activations. Omitted groups have `weights` and `activations`,
                limited to their own max_bits unless these are float32.

        Raises:
            UsageError: If a number of bits is no whole number in [2, 32].
        """
        given = {group: whole_bits(group, bits) for group, bits in (groups or {}).items()}
        weights, activations = whole_bits("weights", weights), whole_bits("activations", activations)
        gradients = whole_bits("gradients", gradients)
        for kind, bits in ((self.weight_bits, weights), (self.activation_bits, activations)):
            in_float = bits >= FLOAT_BITS
            kind |= {"scheduled": bits, "fixed": bits if in_float else self.max_bits}
            for group, max_bits in self.groups.items():
                kind[group] = given.get(group, bits if in_float else min(bits, max_bits))
        self.gradient_bits = gradients
        self._fill_quant_max()

    def _fill_quant_max(self) -> None:
        for group in self.weight_bits:
            self._fill(f"weight_quant_max_{group}", symmetric_quant_max(self.weight_bits[group]))
            self._fill(f"activation_quant_max_{group}", unsigned_quant_max(self.activation_bits[group]))
            self._quantizes_weights[group] = self.weight_bits[group] < FLOAT_BITS
            self._quantizes_activations[group] = self.activation_bits[group] < FLOAT_BITS
        self._fill("gradient_quant_max", unsigned_quant_max(self.gradient_bits))
        self.quantizes_gradients = self.gradient_bits < FLOAT_BITS

    def _fill(self, name: str, quant_max: int) -> None:
        """Set a max quantized value on the device if it has changed."""
        if self._filled.get(name) != quant_max:
            self.get_buffer(name).fill_(float(quant_max))
            self._filled[name] = quant_max

    def bits(self) -> Bits:
        """Return all current bits, for `restore`."""
        return Bits(dict(self.weight_bits), dict(self.activation_bits), self.gradient_bits, self.own_weight_bits)

    def restore(self, bits: Bits) -> None:
        """Restore the bits that `bits` returned."""
        self.weight_bits, self.activation_bits = dict(bits.weights), dict(bits.activations)
        self.gradient_bits, self.own_weight_bits = bits.gradients, dict(bits.own_weights)
        self._fill_quant_max()

    def packed(self) -> Tensor:
        """Return the step (−1 if there is none), the bits of gradients, and those of weights and activations by group.

        Returns:
            int64, (2 + 2 · groups,).
        """
        step = -1 if self.step is None else self.step
        return torch.tensor([step, self.gradient_bits, *self.weight_bits.values(), *self.activation_bits.values()])

    def unpack(self, packed: Tensor) -> None:
        """Set what `packed` returned.

        Raises:
            UsageError: If it is of a model with other groups of layers.
        """
        step, gradients, *bits = (int(number) for number in packed)
        if len(bits) != 2 * len(self.weight_bits):
            raise UsageError(
                f"Expected bits of {len(self.weight_bits)} groups of layers, but got those of {len(bits) / 2:g}",
                hint="prepare the model as the one was that the state is of",
            )
        groups = list(self.weight_bits)
        weights, activations = bits[: len(groups)], bits[len(groups) :]
        self.restore(
            Bits(dict(zip(groups, weights, strict=True)), dict(zip(groups, activations, strict=True)), gradients, {})
        )
        if step >= 0:
            self.set_step(step, 0)

    def max_bits_of(self, group: PrecisionGroup) -> int:
        """Return the max_bits of a group."""
        return self.groups.get(group, self.max_bits)

    def add_layer(self, index: int) -> None:
        """Add the seeds of a layer."""
        known = len(self.layer_seeds)
        added = [mix_seed(self.seed, number) for number in range(known, index + 1)]
        self.layer_seeds = torch.cat([self.layer_seeds, self.layer_seeds.new_tensor(added)])
        self.seeds = mix_into(self.layer_seeds, 0)

    def set_step(self, step: int, first_sample: int) -> None:
        """Set the seeds of a step, see `QuantizedModel.set_step`."""
        self.step = step
        self.seeds.copy_(mix_into(self.layer_seeds, step))
        self.first_sample = first_sample

    def seed_of(self, index: int, sample: int) -> Tensor:
        """Return the seed of a layer's gradient in this step, 0-dim int64; only its low 32 bits are used.

        Args:
            index: The layer's index.
            sample: Number of values of the gradient per sample.
        """
        seed = self.seeds[index]
        return seed_from_index(seed, self.first_sample * sample) if self.first_sample else seed

    def weight_quant_max(self, group: PrecisionGroup) -> Tensor:
        """Return the max quantized weight of a group, 0-dim float32."""
        return self.get_buffer(f"weight_quant_max_{group}")

    def activation_quant_max(self, group: PrecisionGroup) -> Tensor:
        """Return the max quantized activation of a group, 0-dim float32."""
        return self.get_buffer(f"activation_quant_max_{group}")

    def weight_quant_max_of(self, index: int, group: PrecisionGroup) -> Tensor:
        """Return the max quantized weight of a layer, which may have its own bits, 0-dim float32."""
        quant_max = self.weight_quant_max(group)
        if index not in self.own_weight_bits:
            return quant_max
        return torch.full_like(quant_max, float(symmetric_quant_max(self.own_weight_bits[index])))

    def weight_bits_of(self, index: int, group: PrecisionGroup) -> int:
        """Return the bits of a layer's weights: its own, or those of its group."""
        return self.own_weight_bits.get(index, self.weight_bits[group])

    def quantizes_weights(self, index: int, group: PrecisionGroup) -> bool:
        """Return whether the weights of a layer are quantized at all at their current bits."""
        own = self.own_weight_bits.get(index)
        return self._quantizes_weights[group] if own is None else own < FLOAT_BITS

    def quantizes_activations(self, group: PrecisionGroup) -> bool:
        """Return whether activations of a group are quantized at all at their current bits."""
        return self._quantizes_activations[group]

    @property
    def saturation_limit(self) -> int | None:
        """Max sum of two quantized weights of one sign in evaluation and freezing; None means no limit."""
        return None if self.native else saturation_limit(min(max(self.activation_bits.values()), MAX_INTEGER_BITS))

    @property
    def branches(self) -> tuple[bool, ...]:
        """Which tensors are quantized at all at the current bits; this determines the operations of a step."""
        quantized = (*self._quantizes_weights.values(), *self._quantizes_activations.values())
        return (*quantized, self.quantizes_gradients, *(bits < FLOAT_BITS for bits in self.own_weight_bits.values()))

    @property
    def most_bits(self) -> int:
        """The max of all current bits."""
        own = self.own_weight_bits.values()
        return max(*self.weight_bits.values(), *self.activation_bits.values(), self.gradient_bits, *own)
