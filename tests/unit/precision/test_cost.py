"""Costs against the percentages that the papers print and against the plain sum over layers and steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.precision import (
    BitOpsMeter,
    CyclicSchedule,
    DelayedSchedule,
    LayerCost,
    StaticSchedule,
    build_schedule,
    relative_cost,
    share_of_steps,
)

STEPS = 64_000


def saving(name: str, low: int, high: int, grad: int, cycles: int = 32, steps: int = STEPS) -> float:
    """Percent saved against static `high` bits."""
    forward = build_schedule(name, min_bits=low, max_bits=high, cycles=cycles)
    return 100 * (1 - relative_cost(forward, StaticSchedule(grad), steps))


@pytest.mark.parametrize(
    ("low", "high", "grad", "percent"),
    [
        (3, 8, 8, 36.67),
        (3, 6, 6, 30.05),
        (3, 4, 6, 14.84),
        (4, 8, 8, 30.11),
        (4, 6, 6, 20.69),
        (4, 6, 8, 19.96),
        (5, 8, 8, 23.16),
        (5, 6, 8, 10.23),
    ],
)
def test_the_cosine_saves_what_the_paper_prints(low, high, grad, percent):
    assert saving("cosine", low, high, grad) == pytest.approx(percent, abs=0.006)


@pytest.mark.parametrize(
    ("name", "percent_3_8", "percent_4_8"),
    [
        ("CR", 36.7, 30.1),
        ("LR", 37.3, 30.5),
        ("ER", 17.8, 14.2),
        ("RR", 60.1, 49.9),
        ("CT", 36.7, 30.1),
        ("LT", 37.2, 30.5),
        ("ETV", 36.5, 30.0),
        ("ETH", 17.8, 14.2),
        ("RTV", 36.3, 29.8),
        ("RTH", 60.1, 49.9),
    ],
)
def test_the_ten_schedules_save_what_their_definitions_give(name, percent_3_8, percent_4_8):
    assert saving(name, 3, 8, 8, cycles=8) == pytest.approx(percent_3_8, abs=0.06)
    assert saving(name, 4, 8, 8, cycles=8) == pytest.approx(percent_4_8, abs=0.06)


@pytest.mark.parametrize(
    ("low", "shares"),
    [
        (3, {3: 20.5, 4: 16.5, 5: 13.1, 6: 13.1, 7: 16.5, 8: 20.5}),
        (4, {4: 23.1, 5: 19.0, 6: 16.1, 7: 19.0, 8: 23.0}),
    ],
)
def test_share_of_steps_of_the_cosine(low, shares):
    got = share_of_steps(CyclicSchedule(low, 8, 32), STEPS)
    assert list(got) == sorted(shares)
    assert sum(got.values()) == pytest.approx(1)
    for bits, percent in shares.items():
        assert 100 * got[bits] == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize(("name", "mean"), [("CR", 5.5), ("ER", 6.83), ("RR", 3.80), ("RTH", 3.81), ("ETH", 6.83)])
def test_mean_bits(name, mean):
    shares = share_of_steps(build_schedule(name, min_bits=3, max_bits=8, cycles=8), STEPS)
    assert sum(bits * share for bits, share in shares.items()) == pytest.approx(mean, abs=0.01)


def test_cost_is_relative_to_the_bits_asked_for():
    three = StaticSchedule(3)
    assert relative_cost(three, StaticSchedule(8), 10) == 1
    assert relative_cost(three, StaticSchedule(8), 10, reference_bits=8) == pytest.approx(57 / 192)


def test_a_run_without_steps_has_no_cost_ratio():
    with pytest.raises(ValueError, match="total_steps"):
        relative_cost(StaticSchedule(8), StaticSchedule(8), 0)


def test_the_meter_gives_the_bitops_of_the_papers_imagenet_table():
    resnet18 = BitOpsMeter([LayerCost("all", 1_814_073_344, "scheduled")], max_bits=8)
    assert resnet18.step_cost(8, 8, samples=64_000 * 128) / 1e9 == pytest.approx(2.86e9, rel=0.005)


LAYERS = st.lists(
    st.builds(
        LayerCost,
        name=st.just("layer"),
        macs=st.integers(1, 10**10),
        group=st.sampled_from(["scheduled", "fixed", "float"]),
    ),
    min_size=1,
    max_size=6,
)
STEPS_TAKEN = st.lists(st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(1, 512)), max_size=8)


@given(layers=LAYERS, steps=STEPS_TAKEN)
def test_the_meter_adds_up_every_layer_at_its_own_bits(layers, steps):
    meter = BitOpsMeter(layers, max_bits=8)
    added = [meter.add(*step) for step in steps]

    def cost(layer: LayerCost, forward: int, backward: int) -> int:
        fw, bw = {"scheduled": (forward, backward), "fixed": (8, backward), "float": (32, 32)}[layer.group]
        return layer.macs * (fw * fw + fw * bw + fw * bw)

    expected = [sum(cost(layer, fw, bw) for layer in layers) * samples for fw, bw, samples in steps]
    assert added == expected
    assert meter.total == sum(expected)
    assert meter.summary().static_max_bits == sum(sum(cost(layer, 8, bw) for layer in layers) * n for _, bw, n in steps)
    assert 0 <= meter.summary().saving < 1


def test_the_meter_resumes_from_its_state():
    whole, first = (BitOpsMeter([LayerCost("a", 1000, "scheduled")], max_bits=8) for _ in range(2))
    for meter in (whole, first):
        meter.add(3, 8, 128)
    resumed = BitOpsMeter(first.layers, max_bits=8)
    resumed.load_state_dict(first.state_dict())
    for meter in (whole, resumed):
        meter.add(8, 8, 128)
    assert resumed.summary() == whole.summary()


def test_the_summary_is_in_gbitops():
    meter = BitOpsMeter([LayerCost("a", 10**9, "scheduled")], max_bits=8)
    meter.add(4, 8, 1)
    assert meter.summary().to_dict() == {"gbitops": 80.0, "gbitops_static_upper": 192.0, "saving": 1 - 80 / 192}


def test_a_meter_at_rest_has_saved_nothing():
    assert BitOpsMeter([], max_bits=8).summary().saving == 0


def test_steps_in_float32_cost_all_layers_32_bits_and_are_compared_with_static_precision():
    layers = [LayerCost("a", 100, "scheduled"), LayerCost("b", 10, "fixed"), LayerCost("c", 1, "float")]
    meter = BitOpsMeter(layers, max_bits=8, gradient_max_bits=6)
    assert meter.add(32, 32, 1) == 111 * 3072
    assert meter.summary().static_max_bits == 110 * (64 + 2 * 8 * 6) + 3072
    delayed = DelayedSchedule(StaticSchedule(8), 0.5)
    gradients = DelayedSchedule(StaticSchedule(6), 0.5)
    assert relative_cost(delayed, gradients, 10, reference_bits=8) == pytest.approx((3072 + 160) / 320)
