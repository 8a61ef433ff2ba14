"""The schedule that the learning study recommends for the length of a run (docs/benchmarks/learning-study.md)."""

RECOMMENDED = "recommended"
"""In a recipe, the schedule of `recommended_schedule`."""

_FROM_STEPS = ((0, "exponential"), (3_000, "cosine"))
"""Schedules by the least number of steps of a run, ascending."""


def recommended_schedule(total_steps: int) -> str:
    """Return the name of the schedule for a run of so many steps.

    A cosine spends half of a run below 6 bits, which short runs do not make up for; an exponential rise spends most of
    it at max_bits.
    """
    return next(name for least, name in reversed(_FROM_STEPS) if total_steps >= least)
