from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from cpt_deploy.training.reporting.step_costs import KEPT_TIMES, BitsCost, StepCosts, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def test_kept_times_are_spread_over_all_steps():
    cost = BitsCost()
    for step in range(10 * KEPT_TIMES):
        cost.add(float(step))

    assert cost.steps == 10 * KEPT_TIMES
    assert len(cost.seconds) < KEPT_TIMES
    assert cost.seconds == [float(step) for step in range(0, 10 * KEPT_TIMES, cost.stride)]
    assert abs(cost.summary()["median_seconds"] - 5 * KEPT_TIMES) <= cost.stride


def test_first_step_is_left_out_and_widths_are_apart():
    costs = StepCosts(CPU)
    for bits in (3, 3, 8, 3):
        costs.begin(bits)
        costs.end(bits)

    assert {bits: cost["steps"] for bits, cost in costs.summary().items()} == {"3": 2, "8": 1}
    again = StepCosts(CPU)
    again.load_state_dict(costs.state_dict())
    assert again.summary() == costs.summary()


def peaks_around_a_block() -> tuple[int | None, int | None, int | None]:
    """Return the peaks before and after a block of 100 MB, and after forgetting it, of a process with nothing else."""
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    block = torch.ones(25_000_000)
    del block
    during = peak_memory(CPU)
    reset_peak_memory(CPU)
    return before, during, peak_memory(CPU)


def test_peak_of_memory_is_that_of_the_step():
    # in a process of its own: one that ran other tests gives memory back meanwhile
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        before, during, after = process.submit(peaks_around_a_block).result()
    if before is None:  # the system does not tell it
        return
    assert 90e6 < during - before < 150e6
    assert after - before < 50e6
