"""What `prepare` needs to know: the bounds of the cycle and how ranges are tracked."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from cpt_deploy.errors import UsageError

EndLayers = Literal["hold", "cycle"]

LEAST_BITS = 2
MOST_BITS = 32
#: Most bits that integer kernels execute, hence most that a model is frozen at.
MOST_INTEGER_BITS = 8
#: From here on a tensor is left in float32, whose significand holds no more levels.
FLOAT_BITS = 24


def whole_bits(kind: str, bits: object) -> int:
    """Return a number of bits that may be set.

    Args:
        kind: What has them, as the error names it.
        bits: What was given.

    Raises:
        UsageError: If it is no whole number from `LEAST_BITS` to `MOST_BITS`.
    """
    if type(bits) is bool or not isinstance(bits, Integral) or not LEAST_BITS <= int(bits) <= MOST_BITS:
        raise UsageError(
            f"Expected bits of {kind} to be whole numbers from {LEAST_BITS} to {MOST_BITS}, but got {bits!r}"
        )
    return int(bits)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers with bits of their own.

    Args:
        name: The role of these layers, an identifier.
        match: Shell pattern of the layers' names.
        upper: Their upper bound, at which they are frozen.
    """

    name: str
    match: str
    upper: int


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How a float model becomes a CPT model.

    Args:
        lower: Least bits of the cycle, 2 to `upper`.
        upper: Greatest bits of the cycle, at most 32; 24 and more mean float32. The model is frozen at this bound.
        ends: Whether the first and the last layer hold the upper bound or cycle as the others do.
        range_momentum: Weight of a new batch in the moving average of activation ranges, in (0, 1].
        seed: Seed of the gradients' stochastic rounding.
        groups: Layers with bits of their own; a layer belongs to the first that matches its name.

    Raises:
        UsageError: If the bounds are out of order or out of range.
    """

    lower: int = 3
    upper: int = 8
    ends: EndLayers = "hold"
    range_momentum: float = 0.1
    seed: int = 0
    groups: tuple[LayerGroup, ...] = ()

    def __post_init__(self) -> None:
        given: dict[str, object] = {"the lower bound": self.lower, "the upper bound": self.upper}
        for kind, bits in given.items():
            if not isinstance(bits, Integral):
                raise UsageError(f"Expected bits of {kind} to be whole numbers, but got {bits!r}")
        if not LEAST_BITS <= self.lower <= self.upper <= MOST_BITS:
            raise UsageError(
                f"Expected {LEAST_BITS} <= lower <= upper <= {MOST_BITS} bits, "
                f"but got lower={self.lower}, upper={self.upper}"
            )
        if not 0.0 < self.range_momentum <= 1.0:
            raise UsageError(f"Expected range_momentum to be in (0, 1], but got {self.range_momentum}")
        for group in self.groups:
            if not LEAST_BITS <= group.upper <= self.upper:
                raise UsageError(
                    f"Expected the upper bound of layers {group.match!r} in {LEAST_BITS}..{self.upper} bits, "
                    f"but got {group.upper}",
                    hint="the model's own upper bound, which edges between layers hold, is the greatest",
                )
