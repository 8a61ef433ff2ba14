"""The four profiles of a precision cycle: functions from the position in a cycle to the height between its bounds."""

import math
from collections.abc import Callable
from types import MappingProxyType

Profile = Callable[[float], float]
"""A function from a position z in [0, 1] within a cycle to a height S(z) in [0, 1], rising from 0."""


def cosine(z: float) -> float:
    """Rise along half a cosine: `(1 - cos(pi z)) / 2`, Eq. 1 of Fu et al., 2021."""
    return 0.5 * (1.0 - math.cos(math.pi * z))


def linear(z: float) -> float:
    """Rise along a line: `z`."""
    return z


def exponential(z: float) -> float:
    """Rise fast, then flatten: `1 - exp(-4 z)` (Wolfe & Kyrillidis, 2024); most of the cycle runs at high bits."""
    return 1.0 - math.exp(-4.0 * z)


def rex(z: float) -> float:
    """Rise late: `1 - u / (0.1 + 0.9 u)` with `u = 1 - z` (REX; Wolfe & Kyrillidis, 2024); most runs at low bits."""
    remaining = 1.0 - z
    return 1.0 - remaining / (0.1 + 0.9 * remaining)


PROFILES: MappingProxyType[str, Profile] = MappingProxyType(
    {"cosine": cosine, "linear": linear, "exponential": exponential, "rex": rex}
)
"""The profiles by name."""
