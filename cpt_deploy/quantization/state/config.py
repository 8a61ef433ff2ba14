"""The configuration of `prepare`: min_bits and max_bits, groups of layers, and how ranges are tracked."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from cpt_deploy.errors import UsageError

EndLayers = Literal["fixed", "scheduled"]
Scheme = Literal["integers", "sbm"]
Choice = str | type
"""Modules of a model: a shell pattern of their names, or their type."""

MIN_BITS = 2
MAX_BITS = 32
#: Max bits that integer kernels execute, hence the max bits of a frozen model.
MAX_INTEGER_BITS = 8
#: Why a model of the scheme "sbm" trains only.
REAL_ZERO_POINTS = "the quantizers of scheme 'sbm' have real-valued zero points, which have no integer form"
#: From this number of bits on, a tensor stays in float32, whose significand has no more precision.
FLOAT_BITS = 24


def whole_bits(kind: str, bits: object) -> int:
    """Validate a number of bits and return it as an integer.

    Args:
        kind: The tensors that have these bits, for the error.
        bits: The value to validate.

    Raises:
        UsageError: If it is no whole number from `MIN_BITS` to `MAX_BITS`.
    """
    if type(bits) is bool or not isinstance(bits, Integral) or not MIN_BITS <= int(bits) <= MAX_BITS:
        raise UsageError(f"Expected bits of {kind} to be whole numbers from {MIN_BITS} to {MAX_BITS}, but got {bits!r}")
    return int(bits)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """A group of layers with its own bits.

    Args:
        name: Its name, an identifier.
        match: Shell pattern of the layers' names.
        max_bits: Their max_bits, at which they are frozen.
    """

    name: str
    match: str
    max_bits: int


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How a float model becomes a CPT model.

    Args:
        min_bits: Min bits of the schedule, 2 to `max_bits`.
        max_bits: Max bits of the schedule, at most 32; 24 and more mean float32. The model is frozen at these bits.
        ends: Whether the first and the last layer have fixed precision (max_bits) or follow the schedule as the others.
        range_momentum: Weight of a new batch in the moving average of activation ranges, in (0, 1].
        seed: Seed of the gradients' stochastic rounding.
        groups: Groups of layers with their own bits; a layer belongs to the first group that matches its name.
        include: Shell patterns of module names, or types of modules, whose layers are quantized; empty means all.
        exclude: Likewise those that stay in float, with all modules inside of them. Operations next to them may then
            stay in float too, see docs/explanation/float-parts.md.
        scheme: The quantizers: "integers", which can be exported, or "sbm", those of the CPT paper's published code,
            which train only. With it weights and inputs of convolutions are quantized, at scheduled precision in all of
            them (`ends` is "scheduled"), and all else is float; see docs/explanation/authors-code.md.

    Raises:
        UsageError: If the bounds are out of order or out of range, or there is no such scheme.
    """

    min_bits: int = 3
    max_bits: int = 8
    ends: EndLayers = "fixed"
    range_momentum: float = 0.1
    seed: int = 0
    groups: tuple[LayerGroup, ...] = ()
    include: Sequence[Choice] = ()
    exclude: Sequence[Choice] = ()
    scheme: Scheme = "integers"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise UsageError(f"Expected a scheme of {' or '.join(get_args(Scheme))}, but got {self.scheme!r}")
        if self.scheme == "sbm":
            object.__setattr__(self, "ends", "scheduled")
        for name in ("include", "exclude"):
            choices: object = getattr(self, name)
            if isinstance(choices, str) or not isinstance(choices, Sequence):
                raise UsageError(f"Expected {name} to be a list of patterns or types, but got {choices!r}")
            if not all(isinstance(choice, str | type) for choice in choices):
                raise UsageError(f"Expected {name} to hold patterns or types of modules, but got {list(choices)!r}")
            object.__setattr__(self, name, tuple(choices))
        given: dict[str, object] = {"min_bits": self.min_bits, "max_bits": self.max_bits}
        for kind, bits in given.items():
            if not isinstance(bits, Integral):
                raise UsageError(f"Expected whole numbers of bits for {kind}, but got {bits!r}")
        if not MIN_BITS <= self.min_bits <= self.max_bits <= MAX_BITS:
            raise UsageError(
                f"Expected {MIN_BITS} <= min_bits <= max_bits <= {MAX_BITS}, "
                f"but got min_bits={self.min_bits}, max_bits={self.max_bits}"
            )
        if not 0.0 < self.range_momentum <= 1.0:
            raise UsageError(f"Expected range_momentum to be in (0, 1], but got {self.range_momentum}")
        for group in self.groups:
            if not MIN_BITS <= group.max_bits <= self.max_bits:
                raise UsageError(
                    f"Expected max_bits of layers {group.match!r} in {MIN_BITS}..{self.max_bits} bits, "
                    f"but got {group.max_bits}",
                    hint="they cannot exceed the model's own max_bits, which tensors between layers always have",
                )
