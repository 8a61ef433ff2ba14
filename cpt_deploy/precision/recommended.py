"""The min_bits that the learning study recommends for the length of a run (docs/benchmarks/learning-study.md)."""

LONG_EPOCHS = 30
"""A run is long from so many passes over its data on.

On both sets of Fashion-MNIST few bits lost accuracy in all cells of up to 11 passes and gained it in all from 32 on;
the study has none between. On digits, which nearly all networks read, neither was seen.
"""

LONG_STEPS = 1_000
"""A run of fewer steps is short, whatever its passes: the study has no such run of many passes, so this is caution."""

MIN_BITS_OF_LONG_RUNS = 3
"""The min_bits of long runs, as in the paper."""

SHORT_SPAN = 3
"""Bits between min_bits and max_bits in short runs."""

LOSSES = {"cosine": 1.7, "rex": 1.6}
"""Points of accuracy that these schedules lost at most in short runs between 3 and 8 bits, against static 8 bits.

Runs whose cycles are too short to reach 8 bits do not count.
"""

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
