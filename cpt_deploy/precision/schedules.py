"""Precision schedules: how many bits a step runs at, as a pure function of the step and the length of the run.

Names follow Fu et al., 2021 (`cosine`) and the ten schedules of Wolfe & Kyrillidis, 2024, whose short names are
accepted too (`CR` is `cosine`, `RTH` is `rex-triangular-horizontal`, ...).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

from cpt_deploy.errors import UsageError
from cpt_deploy.precision.profiles import PROFILES
from cpt_deploy.registry import Registry, import_object

MIN_BITS, MAX_BITS = 2, 32
"""The bounds of any schedule: with one bit a symmetric weight can only be zero; 32 means full precision."""

Points = Sequence[tuple[float, int]]
"""The pieces of a piecewise schedule: each start, as a fraction of the run, and its bits."""

Shape = Literal["repeated", "vertical", "horizontal"]


@runtime_checkable
class PrecisionSchedule(Protocol):
    """Any object that returns the bits of a step; picklable, and stateless unless it is adaptive."""

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return the bits of `step`, counted from 0, in a run of `total_steps` steps.

        Raises:
            ValueError: If `step` is not in [0, total_steps).
        """
        ...


@dataclass(frozen=True)
class StaticSchedule:
    """The same bits at every step.

    Args:
        bits: Those bits.
    """

    bits: int

    def __post_init__(self) -> None:
        check_bounds(self.bits, self.bits)

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return `bits`; see `PrecisionSchedule.bits_at`."""
        check_step(step, total_steps)
        return self.bits


@dataclass(frozen=True)
class CyclicSchedule:
    """Cycles of one profile between two bounds, `bits = rint(min_bits + (max_bits - min_bits) S(z))`.

    A cycle is `total_steps / cycles` steps long, as a real number: if the cycles divide the steps, this equals the
    authors' code exactly; otherwise the run still ends at the end of a cycle rather than at the start of another.

    Args:
        min_bits: Minimum bits.
        max_bits: Maximum bits.
        cycles: Number of cycles in the run.
        profile: The rise, one of `PROFILES`.
        shape: "repeated" rises and drops back at once in each cycle. The triangular shapes alternate between falling
            and rising, and the last cycle rises, so an even number of cycles begins at `max_bits`: "vertical" falls as
            `1 - S(z)`, "horizontal" as `S(1 - z)`.
    """

    min_bits: int
    max_bits: int
    cycles: int = 32
    profile: str = "cosine"
    shape: Shape = "repeated"

    def __post_init__(self) -> None:
        check_bounds(self.min_bits, self.max_bits)
        if self.cycles < 1:
            raise UsageError(f"Expected cycles to be at least 1, but got {self.cycles}")
        if self.profile not in PROFILES:
            raise UsageError(f"Expected profile to be one of {', '.join(PROFILES)}, but got {self.profile!r}")

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return the bits of `step`; see `PrecisionSchedule.bits_at`.

        Raises:
            UsageError: If the run has fewer steps than cycles.
        """
        check_step(step, total_steps)
        if self.cycles > total_steps:
            raise UsageError(
                f"Expected at most one precision cycle per step, but got {self.cycles} cycles in {total_steps} steps",
                hint=f"train longer, or set fewer cycles: precision.cycles={max(total_steps // 10, 1)}",
            )
        cycle, offset = divmod(step * self.cycles, total_steps)
        z = offset / total_steps
        span = float(self.max_bits - self.min_bits)
        rise = PROFILES[self.profile]
        # round() goes half to even, as the rint of the authors' code does.
        if self.shape == "repeated" or (self.cycles - 1 - cycle) % 2 == 0:
            return round(self.min_bits + span * rise(z))
        if self.shape == "vertical":
            return round(self.max_bits - span * rise(z))
        return round(self.min_bits + span * rise(1.0 - z))


@dataclass(frozen=True)
class PiecewiseSchedule:
    """Bits that change at given points of the run.

    Args:
        points: Pairs of the start of a piece, as a fraction of the run, and its bits; the first starts at 0.
    """

    points: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.points]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise UsageError(
                f"Expected points to start at fraction 0 and to rise below 1, but got {list(self.points)}",
                hint="for example [[0, 3], [0.5, 6], [0.9, 8]]: 3 bits, from the middle 6, for the last tenth 8",
            )
        for _, bits in self.points:
            check_bounds(bits, bits)

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return the bits of the piece that contains `step`; see `PrecisionSchedule.bits_at`."""
        check_step(step, total_steps)
        progress = step / total_steps
        return next(bits for start, bits in reversed(self.points) if start <= progress)


@dataclass(frozen=True)
class DelayedSchedule:
    """Quantization that begins late: 32 bits, which mean float32, then another schedule over the rest of the run.

    Args:
        schedule: The other schedule, for which the run begins after the delay.
        delay: The part of the run in float32, at least 0 and below 1.
    """

    schedule: PrecisionSchedule
    delay: float

    def __post_init__(self) -> None:
        if not 0 <= self.delay < 1:
            raise UsageError(f"Expected a delay of at least 0 and below 1, but got {self.delay}")

    def bits_at(self, step: int, total_steps: int) -> int:
        """Return the bits of `step`; see `PrecisionSchedule.bits_at`."""
        check_step(step, total_steps)
        quantized = quantized_steps(self.delay, total_steps)
        first = total_steps - quantized
        return MAX_BITS if step < first else self.schedule.bits_at(step - first, quantized)


def quantized_steps(delay: float, total_steps: int) -> int:
    """Return the steps of a run after a delay of quantization, at least one; see `DelayedSchedule`."""
    return total_steps - int(delay * total_steps)


ScheduleFactory = Callable[[int, int, int, Points | None], PrecisionSchedule]
"""A function that builds a schedule from `min_bits`, `max_bits`, `cycles` and `points`."""

schedules: Registry[ScheduleFactory] = Registry("precision schedule")
"""The schedules that a recipe can name; others are given as `module:attribute`, see `build_schedule`."""


@schedules.register("static")
def _static(_lower: int, max_bits: int, _cycles: int, _points: Points | None) -> PrecisionSchedule:
    return StaticSchedule(max_bits)


@schedules.register("piecewise")
def _piecewise(min_bits: int, max_bits: int, _cycles: int, points: Points | None) -> PrecisionSchedule:
    if not points:
        raise UsageError(
            "Expected the piecewise schedule to have points, but got none",
            hint="give pairs of a start, as a fraction of the run, and bits: [[0, 3], [0.5, 6], [0.9, 8]]",
        )
    outside = [bits for _, bits in points if not min_bits <= bits <= max_bits]
    if outside:
        raise UsageError(f"Expected the bits of points to lie in {min_bits}..{max_bits}, but got {outside}")
    return PiecewiseSchedule(tuple((float(start), int(bits)) for start, bits in points))


def _cyclic(profile: str, shape: Shape) -> ScheduleFactory:
    def build(min_bits: int, max_bits: int, cycles: int, _points: Points | None) -> PrecisionSchedule:
        return CyclicSchedule(min_bits, max_bits, cycles, profile, shape)

    return build


_CYCLIC: dict[str, tuple[str, str, Shape]] = {
    "CR": ("cosine", "cosine", "repeated"),
    "LR": ("linear", "linear", "repeated"),
    "ER": ("exponential", "exponential", "repeated"),
    "RR": ("rex", "rex", "repeated"),
    # For a cosine and a line, vertical and horizontal reflection are the same.
    "CT": ("cosine-triangular", "cosine", "vertical"),
    "LT": ("linear-triangular", "linear", "vertical"),
    "ETV": ("exponential-triangular-vertical", "exponential", "vertical"),
    "ETH": ("exponential-triangular-horizontal", "exponential", "horizontal"),
    "RTV": ("rex-triangular-vertical", "rex", "vertical"),
    "RTH": ("rex-triangular-horizontal", "rex", "horizontal"),
}

for _name, _profile, _shape in _CYCLIC.values():
    schedules.register(_name)(_cyclic(_profile, _shape))


Saving = Literal["large", "medium", "small"]

#: The groups in which Wolfe & Kyrillidis, 2024, compare their ten schedules; those not listed are "medium".
_SAVINGS: dict[str, Saving] = {"RR": "large", "RTH": "large", "ER": "small", "ETH": "small"}


def is_cyclic(name: str) -> bool:
    """Return whether a name, or a short name, is that of a cyclic schedule."""
    return name.upper() in _CYCLIC or published_name(name) is not None


def published_name(name: str) -> tuple[str, Saving] | None:
    """Return the short name and the saving group of a schedule of Wolfe & Kyrillidis; None for any other."""
    for short, (long, _, _) in _CYCLIC.items():
        if long == name:
            return short, _SAVINGS.get(short, "medium")
    return None


def build_schedule(
    name: str,
    *,
    min_bits: int,
    max_bits: int,
    cycles: int = 32,
    points: Points | None = None,
) -> PrecisionSchedule:
    """Build a schedule by name.

    Args:
        name: One of `schedules`, a short name of Wolfe & Kyrillidis ("CR", "RTH", ...), or an import path
            "module:attribute" of a schedule or of a callable that returns one; of `min_bits`, `max_bits`, `cycles` and
            `points`, the callable gets those that it has parameters for.
        min_bits: Minimum bits, at least 2.
        max_bits: Maximum bits, at most 32; the bits of the static schedule.
        cycles: Number of cycles of the cyclic schedules.
        points: Start fractions and bits of the piecewise schedule.

    Raises:
        UsageError: If the name is unknown or an argument is out of range.
    """
    check_bounds(min_bits, max_bits)
    if ":" in name:
        return _build_imported(name, {"min_bits": min_bits, "max_bits": max_bits, "cycles": cycles, "points": points})
    long_name = _CYCLIC[name.upper()][0] if name.upper() in _CYCLIC else name
    return schedules.get(long_name)(min_bits, max_bits, cycles, points)


def _build_imported(path: str, settings: dict[str, object]) -> PrecisionSchedule:
    found = import_object(path)
    # A class has `bits_at` too; only its instances are schedules.
    if callable(found) and (isinstance(found, type) or not isinstance(found, PrecisionSchedule)):
        parameters = inspect.signature(found).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            known = {parameter.name for parameter in parameters}
            settings = {key: value for key, value in settings.items() if key in known}
        try:
            found = cast(Callable[..., object], found)(**settings)
        except TypeError as error:
            raise UsageError(
                f"Expected {path!r} to take min_bits, max_bits, cycles and points, or some of them, but got: {error}"
            ) from error
    if not isinstance(found, PrecisionSchedule):
        raise UsageError(
            f"Expected {path!r} to give an object with a method bits_at(step, total_steps), "
            f"but got {type(found).__name__}"
        )
    return found


def check_bounds(min_bits: int, max_bits: int) -> None:
    """Check that the bounds are in order and within `MIN_BITS` and `MAX_BITS`.

    Raises:
        UsageError: If they are not.
    """
    if not MIN_BITS <= min_bits <= max_bits <= MAX_BITS:
        got = f"{min_bits}" if min_bits == max_bits else f"{min_bits}..{max_bits}"
        raise UsageError(f"Expected bits with {MIN_BITS} <= min_bits <= max_bits <= {MAX_BITS}, but got {got}")


def check_step(step: int, total_steps: int) -> None:
    """Check that a step belongs to the run.

    Raises:
        ValueError: If it does not.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"Expected step to lie in [0, {total_steps}), but got {step}")
