"""Time several functions side by side, so that disturbances of the machine affect all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    seconds: float | None = None,
    min_rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several callables in turn, in reversed order every other round, so that drift affects all alike.

    Args:
        runs: The callables, by name.
        rounds: Max number of timed runs of each.
        warmup: Number of untimed runs of each before.
        seconds: Stop after this time, if given, but not before `min_rounds`.
        min_rounds: See `seconds`.
        clock: Clock to read; `time.process_time` excludes the time of other processes.

    Returns:
        Seconds of each round, by name.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for round_index in range(rounds):
        order = list(runs) if round_index % 2 == 0 else list(runs)[::-1]
        for name in order:
            start = clock()
            runs[name]()
            times[name].append(clock() - start)
        if seconds is not None and round_index + 1 >= min_rounds and time.perf_counter() - begin >= seconds:
            break
    return times


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median over rounds of one time divided by the other."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
