"""Schedules against a NumPy transcription of the published formulas, and the laws that every schedule obeys."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import UsageError
from cpt_deploy.precision import (
    CyclicSchedule,
    DelayedSchedule,
    PiecewiseSchedule,
    StaticSchedule,
    build_schedule,
    quantized_steps,
    schedules,
)

CYCLIC = [name for name in schedules.names() if name not in {"static", "piecewise", "progressive"}]
TRIANGULAR = [name for name in CYCLIC if "triangular" in name]


def reference_curve(name: str, low: int, high: int, cycles: int, total: int) -> np.ndarray:
    """Real-valued bits of the published code, which has integer periods; triangular runs fall in even cycles."""
    period = total // cycles
    step = np.arange(total)
    z = (step % period) / period
    falling = np.zeros(total, dtype=bool) if "triangular" not in name else (step // period) % 2 == 0
    rising_height = {
        "cosine": lambda z: (1 - np.cos(np.pi * z)) / 2,
        "linear": lambda z: z,
        "exponential": lambda z: 1 - np.exp(-4 * z),
        "rex": lambda z: 1 - (1 - z) / (0.1 + 0.9 * (1 - z)),
    }[name.partition("-")[0]]
    falling_height = {
        "exponential-triangular-vertical": lambda z: np.exp(-4 * z),
        "rex-triangular-vertical": lambda z: (1 - z) / (0.1 + 0.9 * (1 - z)),
        "exponential-triangular-horizontal": lambda z: 1 - np.exp(-4 * (1 - z)),
        "rex-triangular-horizontal": lambda z: 1 - z / (0.1 + 0.9 * z),
        "cosine-triangular": lambda z: (1 + np.cos(np.pi * z)) / 2,
        "linear-triangular": lambda z: 1 - z,
    }.get(name, rising_height)
    return low + (high - low) * np.where(falling, falling_height(z), rising_height(z))


def bits_of(schedule, total: int) -> np.ndarray:
    return np.array([schedule.bits_at(step, total) for step in range(total)])


def test_the_ten_published_schedules_are_registered():
    assert len(CYCLIC) == 10
    assert len(TRIANGULAR) == 6


def test_cosine_equals_the_authors_code_at_every_step_of_a_cifar_run():
    step = np.arange(64_000)
    authors = np.rint(3 + 0.5 * (8 - 3) * (1 + np.cos(np.pi * ((step % 2000) / 2000) + np.pi)))
    np.testing.assert_array_equal(bits_of(build_schedule("cosine", min_bits=3, max_bits=8, cycles=32), 64_000), authors)


@pytest.mark.parametrize("name", CYCLIC)
@pytest.mark.parametrize(("low", "high"), [(3, 8), (4, 8), (3, 6), (5, 6)])
def test_cyclic_schedules_round_the_published_curve(name, low, high):
    total, cycles = 4000, 8
    curve = reference_curve(name, low, high, cycles, total)
    got = bits_of(build_schedule(name, min_bits=low, max_bits=high, cycles=cycles), total)
    # Exactly at a half the last digit of the curve decides, and that differs between writings of one formula.
    decided = np.abs(curve - np.floor(curve) - 0.5) > 1e-9
    np.testing.assert_array_equal(got[decided], np.rint(curve)[decided])
    assert np.abs(got - curve).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("short", "name"),
    [("CR", "cosine"), ("er", "exponential"), ("RTH", "rex-triangular-horizontal"), ("LT", "linear-triangular")],
)
def test_short_names_of_the_paper_are_accepted(short, name):
    assert build_schedule(short, min_bits=3, max_bits=8) == build_schedule(name, min_bits=3, max_bits=8)


@given(
    name=st.sampled_from(CYCLIC),
    bounds=st.tuples(st.integers(2, 32), st.integers(2, 32)).map(sorted),
    cycles=st.integers(1, 40),
    total=st.integers(40, 3000),
    share=st.floats(0, 1, exclude_max=True),
)
def test_bits_stay_within_the_bounds(name, bounds, cycles, total, share):
    low, high = bounds
    schedule = build_schedule(name, min_bits=low, max_bits=high, cycles=cycles)
    assert low <= schedule.bits_at(int(share * total), total) <= high


@given(
    total=st.integers(300, 5000), cycles=st.integers(1, 30), name=st.sampled_from(["CR", "LR", "ER", "CT", "LT", "ETV"])
)
def test_a_run_ends_at_the_upper_bound_whether_or_not_the_cycles_divide_it(total, cycles, name):
    schedule = build_schedule(name, min_bits=3, max_bits=8, cycles=cycles)
    # A cycle of ten steps or more ends within a rounding step of its top.
    assert schedule.bits_at(total - 1, total) == 8


@pytest.mark.parametrize("name", TRIANGULAR)
@pytest.mark.parametrize(("cycles", "first"), [(8, 8), (7, 3)], ids=["even", "odd"])
def test_triangular_runs_end_rising_also_with_an_odd_number_of_cycles(name, cycles, first):
    bits = bits_of(build_schedule(name, min_bits=3, max_bits=8, cycles=cycles), 5600)
    assert (bits[0], bits[-1]) == (first, 8)
    assert (np.diff(bits[-5600 // cycles :]) >= 0).all()


@given(cycles=st.integers(1, 32), extra=st.integers(0, 500))
def test_a_run_has_as_many_resets_as_cycles(cycles, extra):
    total = cycles * 20 + extra
    bits = bits_of(CyclicSchedule(3, 8, cycles), total)
    assert int((np.diff(bits) < -3).sum()) == cycles - 1


def test_more_cycles_than_steps_is_a_usage_error():
    with pytest.raises(UsageError, match="32 cycles in 10 steps"):
        CyclicSchedule(3, 8, 32).bits_at(0, 10)


@pytest.mark.parametrize(
    "schedule", [StaticSchedule(8), CyclicSchedule(3, 8, 2), PiecewiseSchedule(((0.0, 8),))], ids=repr
)
@pytest.mark.parametrize("step", [-1, 100, 1000])
def test_steps_outside_of_the_run_are_refused(schedule, step):
    with pytest.raises(ValueError, match=r"\[0, 100\)"):
        schedule.bits_at(step, 100)


def test_static_runs_at_the_upper_bound():
    assert set(bits_of(build_schedule("static", min_bits=3, max_bits=6), 50)) == {6}


def test_piecewise_changes_exactly_at_its_points():
    schedule = build_schedule("piecewise", min_bits=3, max_bits=8, points=[(0, 3), (0.07, 5), (0.7, 8)])
    np.testing.assert_array_equal(bits_of(schedule, 100), [3] * 7 + [5] * 63 + [8] * 30)


@pytest.mark.parametrize(
    "points",
    [None, [], [(0.1, 3)], [(0, 3), (0.5, 4), (0.5, 5)], [(0, 3), (1.0, 8)], [(0, 3), (0.6, 4), (0.5, 8)]],
    ids=["none", "empty", "late start", "twice", "beyond", "falling"],
)
def test_piecewise_refuses_points_that_do_not_cover_the_run_in_order(points):
    with pytest.raises(UsageError, match="points"):
        build_schedule("piecewise", min_bits=3, max_bits=8, points=points)


def test_piecewise_refuses_bits_outside_of_the_bounds():
    with pytest.raises(UsageError, match=r"3\.\.8.*\[9\]"):
        build_schedule("piecewise", min_bits=3, max_bits=8, points=[(0, 3), (0.5, 9)])


@pytest.mark.parametrize(("low", "high"), [(8, 3), (1, 8), (3, 33)])
def test_bounds_out_of_order_or_range_are_refused(low, high):
    with pytest.raises(UsageError, match="Expected bits"):
        build_schedule("cosine", min_bits=low, max_bits=high)


def test_no_cycles_are_refused():
    with pytest.raises(UsageError, match="cycles"):
        build_schedule("cosine", min_bits=3, max_bits=8, cycles=0)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError) as caught:
        build_schedule("cosin", min_bits=3, max_bits=8)
    assert "cosine" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["static", *CYCLIC])
def test_schedules_survive_pickling(name):
    schedule = build_schedule(name, min_bits=3, max_bits=8, cycles=4)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"schedules_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "class Late:\n"
        "    def __init__(self, min_bits, max_bits):\n"
        "        self.bounds = min_bits, max_bits\n"
        "    def bits_at(self, step, total_steps):\n"
        "        return self.bounds[step * 2 >= total_steps]\n"
        "ready = Late(2, 4)\n"
        "def anything(**settings):\n"
        "    return Late(settings['min_bits'], settings['cycles'])\n"
        "def wrong():\n"
        "    return 8\n"
        "number = 8\n"
        "def more(other):\n"
        "    return Late(2, 4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("attribute", "bits"),
    [("Late", [3, 8]), ("ready", [2, 4]), ("anything", [3, 5])],
    ids=["class", "object", "function"],
)
def test_a_users_schedule_is_imported(user_module, attribute, bits):
    schedule = build_schedule(f"{user_module}:{attribute}", min_bits=3, max_bits=8, cycles=5)
    assert [schedule.bits_at(0, 10), schedule.bits_at(9, 10)] == bits


@pytest.mark.parametrize("attribute", ["wrong", "number"])
def test_an_imported_object_that_is_no_schedule_is_refused(user_module, attribute):
    with pytest.raises(UsageError, match="bits_at"):
        build_schedule(f"{user_module}:{attribute}", min_bits=3, max_bits=8)


def test_a_schedule_that_takes_something_else_and_a_relative_path_are_refused(user_module):
    with pytest.raises(UsageError, match=r"to take min_bits, .* missing 1 required"):
        build_schedule(f"{user_module}:more", min_bits=3, max_bits=8)
    with pytest.raises(UsageError, match="'module:attribute'"):
        build_schedule(f".{user_module}:ready", min_bits=3, max_bits=8)


@given(
    name=st.sampled_from(CYCLIC),
    delay=st.floats(0, 1, exclude_max=True),
    cycles=st.integers(1, 4),
    total=st.integers(1, 400),
)
def test_a_delayed_schedule_is_float32_and_then_the_schedule_of_a_shorter_run(name, delay, cycles, total):
    inner = build_schedule(name, min_bits=3, max_bits=8, cycles=cycles)
    rest = quantized_steps(delay, total)
    assert 1 <= rest <= total
    assert (total - rest) / total <= delay < (total - rest + 1) / total
    if rest < cycles:
        return
    bits = [DelayedSchedule(inner, delay).bits_at(step, total) for step in range(total)]
    assert bits == [32] * (total - rest) + [inner.bits_at(step, rest) for step in range(rest)]


@pytest.mark.parametrize("delay", [-0.1, 1.0, float("nan")])
def test_a_delay_is_a_part_of_the_run_that_leaves_steps(delay):
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        DelayedSchedule(StaticSchedule(8), delay)
