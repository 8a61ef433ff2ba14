"""The cost of a precision schedule: share of steps per bit-width, ratio to static precision, and BitOPs per layer.

The unit is that of Fu et al., 2021: a layer costs `MACs (fw^2 + 2 fw bw)` bit operations per sample and training step,
`fw` bits forward and `bw` bits of gradient; the three products are forward, error and weight gradient.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpt_deploy.precision.schedules import CyclicSchedule, PrecisionSchedule, StaticSchedule

FLOAT_BITS = 32

PrecisionGroup = str
"""The precision a layer follows: "scheduled", "fixed", "float", or a group's name."""


def share_of_steps(schedule: PrecisionSchedule, total_steps: int) -> dict[int, float]:
    """Return the share of a run's steps at each bit-width, ascending by bits; the shares add up to 1."""
    counts = Counter(schedule.bits_at(step, total_steps) for step in range(total_steps))
    return {bits: counts[bits] / total_steps for bits in sorted(counts)}


def relative_cost(
    forward: PrecisionSchedule,
    backward: PrecisionSchedule,
    total_steps: int,
    *,
    reference_bits: int | None = None,
) -> float:
    """Return the cost of a run relative to one whose forward precision is static.

    Both have the same `backward` schedule. One minus this is the saving that the paper's tables print.

    Args:
        forward: Bits of weights and activations.
        backward: Bits of the gradients.
        total_steps: Length of the run.
        reference_bits: Forward bits of the static run; the maximum bits of `forward` by default. Where `forward` is
            above it, as before delayed quantization, the static run has the most bits of the other steps' gradients.

    Raises:
        ValueError: If `total_steps` is less than 1.
    """
    if total_steps < 1:
        raise ValueError(f"Expected total_steps to be at least 1, but got {total_steps}")
    pairs = Counter(
        (forward.bits_at(step, total_steps), backward.bits_at(step, total_steps)) for step in range(total_steps)
    )
    reference = reference_bits if reference_bits is not None else max(bits for bits, _ in pairs)
    spent = sum(count * _weight(bits, grad_bits) for (bits, grad_bits), count in pairs.items())
    most = max((grad_bits for bits, grad_bits in pairs if bits <= reference), default=reference)
    static = sum(count * _weight(reference, min(grad_bits, most)) for (_, grad_bits), count in pairs.items())
    return spent / static


@dataclass(frozen=True)
class LayerCost:
    """The size and the precision of one layer, from which its BitOPs are counted.

    Args:
        name: Its name in the model.
        macs: Multiply-accumulates per sample in forward.
        group: "scheduled" follows the schedule, "fixed" stays at max_bits, "float" runs at 32 bits; any other value
            names a group.
    """

    name: str
    macs: int
    group: PrecisionGroup


@dataclass(frozen=True)
class BitOpsSummary:
    """The cost of a run so far.

    Args:
        total: BitOPs spent.
        static_max_bits: BitOPs of the same steps with every layer at its max_bits.
    """

    total: int
    static_max_bits: int

    @property
    def saving(self) -> float:
        """The share of `static_max_bits` that was saved, 0 before the first step."""
        return 1.0 - self.total / self.static_max_bits if self.static_max_bits else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON types, in GBitOPs (1e9), and the saving as a share."""
        return {
            "gbitops": self.total / 1e9,
            "gbitops_static_upper": self.static_max_bits / 1e9,
            "saving": self.saving,
        }


class BitOpsMeter:
    """Adds up the BitOPs of a run, counting each layer at the bits it really runs at.

    Args:
        layers: All layers with multiplications, those in float as well.
        max_bits: Bits of the layers with fixed precision.
        groups: The max_bits of each group of layers.
        gradient_max_bits: Max bits of the gradients at static precision, which steps in float32 are compared with.
    """

    def __init__(
        self,
        layers: Sequence[LayerCost],
        max_bits: int,
        groups: Mapping[PrecisionGroup, int] | None = None,
        gradient_max_bits: int = FLOAT_BITS,
    ) -> None:
        self.layers = tuple(layers)
        self.max_bits = max_bits
        self.groups = dict(groups or {})
        self.gradient_max_bits = gradient_max_bits
        self._macs: dict[PrecisionGroup, int] = dict.fromkeys(("scheduled", "fixed", "float", *self.groups), 0)
        for layer in layers:
            self._macs[layer.group] += layer.macs
        self._total = 0
        self._static_max_bits = 0

    @property
    def total(self) -> int:
        """BitOPs so far."""
        return self._total

    def step_cost(
        self, forward_bits: int, backward_bits: int, samples: int, groups: Mapping[PrecisionGroup, int] | None = None
    ) -> int:
        """Return the BitOPs of one training step.

        Args:
            forward_bits: Bits of weights and activations of the layers with scheduled precision; if they are above
                max_bits, before delayed quantization, those of layers with fixed precision as well.
            backward_bits: Bits of the gradients of all quantized layers.
            samples: Number of samples in the step, over all processes.
            groups: Forward bits of groups; a group that is left out has `forward_bits`, limited to its max_bits unless
                the step is in float32.
        """
        in_float = forward_bits > self.max_bits
        bits = {"scheduled": forward_bits, "fixed": forward_bits if in_float else self.max_bits}
        for group, max_bits in self.groups.items():
            bits[group] = forward_bits if in_float else min(forward_bits, max_bits)
        bits |= dict(groups or {})
        per_sample = sum(self._macs[group] * _weight(own, backward_bits) for group, own in bits.items())
        return (per_sample + self._macs["float"] * _weight(FLOAT_BITS, FLOAT_BITS)) * samples

    def add(
        self, forward_bits: int, backward_bits: int, samples: int, groups: Mapping[PrecisionGroup, int] | None = None
    ) -> int:
        """Count one training step and return its BitOPs; the arguments are those of `step_cost`."""
        cost = self.step_cost(forward_bits, backward_bits, samples, groups)
        self._total += cost
        static = min(backward_bits, self.gradient_max_bits)
        self._static_max_bits += self.step_cost(self.max_bits, static, samples, self.groups)
        return cost

    def add_run(
        self,
        forward: PrecisionSchedule,
        backward: PrecisionSchedule,
        total_steps: int,
        samples: int,
        groups: Mapping[PrecisionGroup, PrecisionSchedule] | None = None,
    ) -> BitOpsSummary:
        """Count the BitOPs of a complete run under its schedules, and return the new totals.

        Args:
            forward: Bits of weights and activations.
            backward: Bits of the gradients.
            total_steps: Length of the run.
            samples: Number of samples in each step.
            groups: Schedules of groups.
        """
        own = dict(groups or {})
        together = (forward, backward, *own.values())
        period = math.lcm(*(_period(schedule, total_steps) for schedule in together))
        counted = period if total_steps % period == 0 else total_steps
        counts = Counter(tuple(entry.bits_at(step, total_steps) for entry in together) for step in range(counted))
        for (forward_bits, backward_bits, *others), count in counts.items():
            times = samples * count * (total_steps // counted)
            self.add(forward_bits, backward_bits, times, dict(zip(own, others, strict=True)))
        return self.summary()

    def summary(self) -> BitOpsSummary:
        """Return the cost of the run so far, and that of the same steps at static precision."""
        return BitOpsSummary(self._total, self._static_max_bits)

    def state_dict(self) -> dict[str, int]:
        """Return the counts, to be saved in a checkpoint."""
        return {"total": self._total, "static_max_bits": self._static_max_bits}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore counts that `state_dict` returned."""
        self._total, self._static_max_bits = int(state["total"]), int(state["static_max_bits"])


def _period(schedule: PrecisionSchedule, total_steps: int) -> int:
    """Return the number of steps after which a schedule is known to repeat itself."""
    if isinstance(schedule, StaticSchedule):
        return 1
    if isinstance(schedule, CyclicSchedule) and schedule.shape == "repeated" and total_steps % schedule.cycles == 0:
        return total_steps // schedule.cycles
    return total_steps


def _weight(forward_bits: int, backward_bits: int) -> int:
    return forward_bits * forward_bits + 2 * forward_bits * backward_bits
