import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.recipe import LearningRateSettings, SwaSettings
from cpt_deploy.training.loop.learning_rate import learning_rate_at, learning_rate_factor

NO_SWA = SwaSettings()


def test_piecewise_is_that_of_the_paper():
    settings = LearningRateSettings(name="piecewise", milestones=(0.5, 0.75), gamma=0.1)

    steps = (0, 31999, 32000, 47999, 48000, 63999)

    rates = [learning_rate_at(0.1, settings, NO_SWA, step, 64000) for step in steps]

    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("cycles", [1, 2, 5])
def test_a_cyclic_rate_is_torchs_cosine_with_restarts(cycles):
    settings = LearningRateSettings(name="cosine", cycles=cycles, final_factor=0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    expected = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 100 // cycles, eta_min=0.1)
    for step in range(100):
        assert learning_rate_factor(settings, step, 100) == pytest.approx(expected.get_last_lr()[0])
        optimizer.step()
        expected.step()


@given(st.integers(1, 40), st.integers(1, 60))
def test_each_cycle_begins_at_the_whole_rate(cycles, steps):
    settings = LearningRateSettings(name="cosine", cycles=cycles)
    for cycle in range(cycles):
        assert learning_rate_factor(settings, cycle * steps, cycles * steps) == 1.0


def test_cosine_is_that_of_loshchilov_and_hutter():
    settings = LearningRateSettings(name="cosine")

    for step in range(100):
        expected = 0.5 * (1 + math.cos(math.pi * step / 100))
        assert learning_rate_factor(settings, step, 100) == pytest.approx(expected)


def test_linear_waits_and_ends_where_it_is_told():
    settings = LearningRateSettings(name="linear", decay_start=0.5, decay_end=0.9, final_factor=0.01)

    factors = [learning_rate_factor(settings, step, 100) for step in (0, 50, 70, 90, 99)]

    assert factors == pytest.approx([1, 1, 0.505, 0.01, 0.01])


def test_constant_is_constant():
    settings = LearningRateSettings(name="constant")

    assert {learning_rate_factor(settings, step, 10) for step in range(10)} == {1.0}


def test_warmup_rises_linearly_from_its_factor():
    settings = LearningRateSettings(name="constant", warmup_steps=10, warmup_factor=0.2)

    assert [learning_rate_factor(settings, step, 50) for step in (0, 5, 10, 20)] == pytest.approx([0.2, 0.6, 1, 1])


def test_constant_warmup_is_that_of_the_authors():
    settings = LearningRateSettings(
        name="piecewise", milestones=(0.5, 0.75), warmup="constant", warmup_steps=400, warmup_factor=0.1
    )
    rates = [0.1 * learning_rate_factor(settings, step, 64_000) for step in (0, 399, 400, 31_999, 32_000)]

    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])


def test_averaging_takes_over_with_its_own_rate():
    settings = LearningRateSettings(name="constant")
    swa = SwaSettings(enabled=True, start=0.5, lr=0.05)

    assert [learning_rate_at(0.1, settings, swa, step, 10) for step in (4, 5, 9)] == [0.1, 0.05, 0.05]
    assert learning_rate_at(0.1, settings, SwaSettings(enabled=True, start=0.5), 9, 10) == 0.1


@given(
    name=st.sampled_from(["piecewise", "linear", "cosine", "constant"]),
    total=st.integers(1, 500),
    data=st.data(),
    final=st.floats(0, 1),
)
def test_factor_falls_and_stays_within_its_bounds(name, total, data, final):
    settings = LearningRateSettings(name=name, final_factor=final)
    step = data.draw(st.integers(0, total - 1))

    factor = learning_rate_factor(settings, step, total)

    assert 0 <= factor <= 1
    if step + 1 < total:
        assert learning_rate_factor(settings, step + 1, total) <= factor + 1e-12


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_the_run_is_an_error(step):
    with pytest.raises(ValueError, match="Expected step"):
        learning_rate_factor(LearningRateSettings(), step, 10)
