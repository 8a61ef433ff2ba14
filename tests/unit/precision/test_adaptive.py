"""The progressive schedule against turning points worked out by hand, and resuming in the middle of a run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import UsageError
from cpt_deploy.precision import (
    AdaptiveSchedule,
    BitOpsMeter,
    LayerCost,
    PlateauRule,
    ProgressiveSchedule,
    StaticSchedule,
    build_schedule,
    follow_losses,
    progressive_stages,
)

FRACTRAIN = (3, 4, 6, 8)
"""The stages of FracTrain's example, whose threshold and decay are the defaults."""


def turning_periods(losses: list[float], **rule: float) -> list[int]:
    schedule = ProgressiveSchedule(FRACTRAIN, PlateauRule(**rule))  # type: ignore[arg-type]
    follow_losses(schedule, losses, 1)
    return schedule.turning_points


def test_stages_between_3_and_8_are_those_of_the_published_example():
    assert progressive_stages(3, 8) == FRACTRAIN
    assert build_schedule("progressive", min_bits=3, max_bits=8).stages == FRACTRAIN
    assert (PlateauRule().threshold, PlateauRule().decay) == (0.05, 0.3)


def test_a_flat_loss_turns_every_fifth_period_until_the_last_stage():
    assert turning_periods([1.0] * 30) == [5, 10, 15]


def test_a_loss_that_keeps_falling_fast_never_turns():
    assert turning_periods([10.0 - period for period in range(8)]) == []


def test_the_threshold_is_relative_to_the_mean_loss_of_the_first_ten_periods():
    # Falls from 2 by 0.02 a period: the fifth differs from the first by 0.08, and the scale is 1.96 then.
    losses = [2.0 - 0.02 * period for period in range(5)]
    assert turning_periods(losses, threshold=0.0409) == [5]
    assert turning_periods(losses, threshold=0.0407) == []


def test_the_scale_is_kept_after_ten_periods():
    schedule = ProgressiveSchedule(FRACTRAIN)
    follow_losses(schedule, [4.0, 2.0] * 5, 1)
    assert schedule.scale == pytest.approx(3.0)
    follow_losses(schedule, [0.1] * 3, 1)
    assert schedule.scale == pytest.approx(3.0)


def test_the_threshold_decays_at_each_turning_point():
    # With 0.05, 0.015, 0.0045 of a scale near 1: a fall of 0.002 a period passes the first two, not the third.
    losses = [1.0 - 0.002 * period for period in range(40)]
    schedule = ProgressiveSchedule(FRACTRAIN)
    follow_losses(schedule, losses, 1)
    assert schedule.turning_points == [5, 10]
    assert schedule.threshold == pytest.approx(0.05 * 0.3 * 0.3)


def test_bits_and_cost_are_those_that_steps_ran_at():
    schedule = ProgressiveSchedule((3, 8))
    follow_losses(schedule, [1.0] * 10, 2)
    assert [schedule.bits_at(step, 20) for step in (0, 9, 10, 19)] == [3, 3, 8, 8]
    meter = BitOpsMeter([LayerCost("all", 1, "scheduled")], max_bits=8)
    spent = meter.add_run(schedule, StaticSchedule(8), 20, 1)
    assert spent.total == 10 * (9 + 2 * 3 * 8) + 10 * (64 + 2 * 8 * 8)


@given(losses=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(losses, cut):
    whole, first = (ProgressiveSchedule(FRACTRAIN, PlateauRule(threshold=0.4)) for _ in range(2))
    follow_losses(whole, losses, 7)
    follow_losses(first, losses[:cut], 7)
    second = ProgressiveSchedule(FRACTRAIN, PlateauRule(threshold=0.4))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for period, loss in enumerate(losses[cut:], start=min(cut, len(losses)) + 1):
        second.observe(loss, 7 * period)
    assert second == whole
    assert isinstance(second, AdaptiveSchedule)


@pytest.mark.parametrize("stages", [(), (8, 3), (1, 3)])
def test_stages_that_fall_or_leave_the_range_are_refused(stages):
    with pytest.raises(UsageError, match="Expected"):
        ProgressiveSchedule(stages)


@pytest.mark.parametrize("rule", [{"threshold": 0.0}, {"decay": 1.5}, {"window": 1}, {"scale_periods": 0}])
def test_rules_that_cannot_work_are_refused(rule):
    with pytest.raises(UsageError, match="threshold > 0"):
        PlateauRule(**rule)
