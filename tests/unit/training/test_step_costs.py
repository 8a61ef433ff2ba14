import torch

from cpt_deploy.training.step_costs import KEPT_TIMES, StepCosts, WidthCost, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def test_kept_times_are_spread_over_all_steps():
    cost = WidthCost()
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


def test_peak_of_memory_is_that_of_the_step():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    if before is None:  # the system does not tell it
        return
    block = torch.ones(25_000_000)
    del block
    assert 90e6 < peak_memory(CPU) - before < 150e6

    reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < 50e6
