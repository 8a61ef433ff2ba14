"""What kernels do with a few numbers a tensor or a channel: grids, averages, normalisation, scales."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_deploy.quantization.kernels import AccumulatorScale, Average, BatchNorm, Clamp, QuantMax
from cpt_deploy.quantization.kernels.reference import TorchKernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TORCH = TorchKernels()
WIDTH, HEIGHT = torch.tensor(255.0), torch.tensor(7.0)


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(found, expected, strict=True))


@given(
    lows=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    extent=st.floats(0, 2.0**99, width=32),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    own_min=st.sampled_from([0.0, 255.0]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_range_in_parts_gets_the_qparams_of_torch(native, lows, extent, bits, symmetric, own_min):
    low = torch.tensor(lows)
    quant_max = QuantMax(torch.tensor(2.0**bits - 1), HEIGHT, own_min, symmetric)
    found, expected = (kernels.observe(low, low + extent, None, quant_max) for kernels in (native, TORCH))
    for a, b in ((found.own, expected.own), (found.scheduled, expected.scheduled), (found[:2], expected[:2])):
        assert equal(a, b)
    step = native.gradient_step(low, low + extent, quant_max.own)
    assert torch.equal(step, TORCH.gradient_step(low, low + extent, quant_max.own))


def test_a_part_that_is_not_a_number_shows_in_range_and_step(native) -> None:
    low = torch.zeros(1500)
    low[1400] = float("nan")
    found = native.observe(low, low + 1, None, QuantMax(WIDTH, HEIGHT, 0.0, False))
    assert found.low.isnan()
    assert found.own.scale.isnan()
    assert native.gradient_step(low, low + 1, WIDTH).isnan()


def test_a_moving_average_of_ranges_is_that_of_torch(native, in_place: bool) -> None:
    if not in_place:
        pytest.skip("averages are updated in place, on the device")
    averages = [Average(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0), 0.1) for _ in range(2)]
    for number in range(15):
        ends = torch.tensor([-1.0 - number % 4]), torch.tensor([2.0 + number % 3])
        for kernels, average in zip((native, TORCH), averages, strict=True):
            kernels.observe(*ends, average, QuantMax(WIDTH, HEIGHT, 0.0, False))
    assert averages[0].batches == averages[1].batches == 15
    assert torch.allclose(torch.stack(averages[0][:2]), torch.stack(averages[1][:2]), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 19, 300])
@pytest.mark.parametrize("normed", [True, False])
def test_normalisation_is_that_of_torch(native, in_place: bool, channels: int, normed: bool) -> None:
    torch.manual_seed(channels)
    x = torch.randn(64, channels) * 50 + 10
    statistics, unit = TORCH.statistics(x), AccumulatorScale(torch.tensor(0.03), torch.rand(channels) + 0.5)
    results = []
    for kernels in (native, TORCH):
        averages = (torch.zeros(channels), unit.weight.clone(), torch.tensor(3))
        norm = BatchNorm(torch.linspace(-1, 1, channels), unit.weight, *averages, 0.1, 1e-5)
        bias = torch.linspace(0, 1, channels)
        result, ends = kernels.normalise(statistics, unit, bias, norm if normed else None, Clamp(low=0.0), 64)
        results.append((*result, *(torch.stack([ends[0].min(), ends[1].max()]),)))
        if normed:
            terms, grad_gamma = kernels.normalisation_terms(result, bias, bias + 1, 64)
            results[-1] += (*terms, grad_gamma)
            if in_place:
                assert norm.batches == 4
                results[-1] += (norm.running_mean, norm.running_variance)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=2e-6, atol=2e-6)


def test_weights_and_gradients_are_scaled_as_in_torch(native) -> None:
    codes, scales = torch.randint(-127, 128, (10, 3, 7, 7), dtype=torch.int8), torch.rand(10)
    step = torch.tensor(1.7e-3)
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (codes.contiguous(memory_format=torch.channels_last), scales, step, dtype)
        found, expected = native.real_weight(*arguments), TORCH.real_weight(*arguments)
        if INTERPRETED and dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
            assert torch.allclose(found, expected, rtol=2**-7)
        else:
            assert torch.equal(found, expected)
        x = torch.randn(5, 77).to(dtype)
        assert torch.equal(native.scale(x.clone(), step, WIDTH), TORCH.scale(x.clone(), step, WIDTH))
