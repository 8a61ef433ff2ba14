"""The bounds that the learning study recommends for the length of a run (docs/benchmarks/learning-study.md)."""

RECOMMENDED = "recommended"
"""In a recipe: the paper's cosine, in short runs between fewer bits."""

LONG_STEPS, LONG_EPOCHS = 1_000, 30
"""A run is long from so many steps and passes over its data on: then it gains from min_bits of 3, else it loses."""

SHORT_SPAN = 3
"""Bits between min_bits and max_bits in short runs."""

LOSSES = {"cosine": 1.7, "rex": 3.1}
"""Points of accuracy that these schedules lost at most in short runs between 3 and 8 bits, against static 8 bits."""

RECOMMENDED_LOSS = 0.3
"""The same of the recommended schedule, between 5 and 8 bits."""


def is_short(total_steps: int, epochs: float) -> bool:
    """Return whether a run is too short for the paper's bounds.

    Args:
        total_steps: Its steps.
        epochs: Its passes over the training data.
    """
    return total_steps < LONG_STEPS or epochs < LONG_EPOCHS


def recommended_min_bits(min_bits: int, max_bits: int, total_steps: int, epochs: float) -> int:
    """Return min_bits for a run: those given, in a short run at most `SHORT_SPAN` below max_bits."""
    return max(min_bits, max_bits - SHORT_SPAN) if is_short(total_steps, epochs) else min_bits
