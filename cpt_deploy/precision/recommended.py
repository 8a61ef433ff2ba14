"""The min_bits that the learning study recommends for the length of a run (docs/benchmarks/learning-study.md)."""

LONG_STEPS, LONG_EPOCHS = 1_000, 30
"""A run is long from so many steps and passes over its data on: it gains from few bits, a shorter one loses."""

MIN_BITS_OF_LONG_RUNS = 3
"""The min_bits of long runs, as in the paper."""

SHORT_SPAN = 3
"""Bits between min_bits and max_bits in short runs."""

LOSSES = {"cosine": 1.7, "rex": 3.1}
"""Points of accuracy that these schedules lost at most in short runs between 3 and 8 bits, against static 8 bits."""

RECOMMENDED_LOSS = 0.3
"""The same of the cosine with the recommended min_bits, 5."""


def is_short(total_steps: int, epochs: float) -> bool:
    """Return whether a run is too short for few bits.

    Args:
        total_steps: Its quantized steps.
        epochs: Their passes over the training data.
    """
    return total_steps < LONG_STEPS or epochs < LONG_EPOCHS


def recommended_min_bits(max_bits: int, total_steps: int, epochs: float) -> int:
    """Return min_bits for a run; see `is_short`."""
    least = max_bits - SHORT_SPAN if is_short(total_steps, epochs) else 0
    return max(min(MIN_BITS_OF_LONG_RUNS, max_bits), least)
