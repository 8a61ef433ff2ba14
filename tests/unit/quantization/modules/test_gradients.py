"""Stochastic rounding: unbiased, on few values, seeded, and harmless to what it must not touch."""

import pytest
import torch
from scipy import stats

from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.kernels.selection import load_native
from cpt_deploy.quantization.modules import gradients
from cpt_deploy.quantization.modules.gradients import quantize_gradient, with_quantized_gradient
from cpt_deploy.quantization.numerics.stochastic_rounding import index_noise, mix_seed

CPU = torch.device("cpu")


def quant_max(bits: int) -> torch.Tensor:
    return torch.tensor(float(2**bits - 1))


@pytest.fixture(autouse=True, params=["torch", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes gradients be rounded by one backend of kernels."""
    kernels = TorchKernels() if request.param == "torch" else load_native()
    if isinstance(kernels, str):
        pytest.skip(f"no compiled kernels: {kernels}")
    monkeypatch.setattr(gradients, "kernels_on", lambda device: kernels)


def test_noise_is_uniform() -> None:
    noise = index_noise(200_000, 7, CPU).double().numpy()
    assert noise.min() >= 0
    assert noise.max() < 1
    assert stats.kstest(noise, "uniform").pvalue > 1e-3


def test_noise_of_neighbouring_seeds_and_indices_is_uncorrelated() -> None:
    first, second = index_noise(100_000, 1, CPU), index_noise(100_000, 2, CPU)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 0.02


def test_noise_is_a_function_of_index_and_seed() -> None:
    assert torch.equal(index_noise(100, 5, CPU), index_noise(1000, 5, CPU)[:100])
    assert not torch.equal(index_noise(100, 5, CPU), index_noise(100, 6, CPU))


def test_seeds_of_different_steps_and_layers_differ() -> None:
    seeds = {mix_seed(0, layer, step) for layer in range(40) for step in range(200)}
    assert len(seeds) == 40 * 200


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_element_is_rounded_with_the_noise_of_its_place_in_memory(layout: torch.memory_format) -> None:
    gradient = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout)
    step = (gradient.max() - gradient.min()) / 254
    noise = index_noise(gradient.numel(), 77, CPU).as_strided(gradient.shape, gradient.stride())
    assert torch.equal(quantize_gradient(gradient, quant_max(8), 77), torch.floor(gradient / step + noise) * step)


def test_a_gradient_in_bfloat16_is_rounded_as_float32() -> None:
    gradient = torch.randn(4, 50).bfloat16()
    assert torch.equal(
        quantize_gradient(gradient, quant_max(8), 5), quantize_gradient(gradient.float(), quant_max(8), 5)
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased_and_has_the_expected_variance(bits: int) -> None:
    gradient = torch.randn(400)
    draws = torch.stack([quantize_gradient(gradient, quant_max(bits), seed) for seed in range(3000)])
    step = float((gradient.max() - gradient.min()) / (quant_max(bits) - 1))
    fraction = (gradient / step) % 1
    expected = (fraction * (1 - fraction)).sqrt() * step  # standard deviation of rounding to one of two neighbours
    error = (draws.mean(dim=0) - gradient).abs()
    assert torch.all(error <= 5 * expected / 3000**0.5 + 1e-5)
    assert torch.allclose(draws.std(dim=0), expected, atol=0.06 * step)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_gradient_takes_no_more_values_than_its_bits_allow(bits: int) -> None:
    for seed in range(50):
        gradient = torch.randn(5000, generator=torch.Generator().manual_seed(seed))
        assert len(quantize_gradient(gradient, quant_max(bits), seed).unique()) <= 2**bits


def test_zeros_stay_zero() -> None:
    gradient = torch.tensor([0.0, 1.0, -0.3, 0.0])
    assert torch.all(quantize_gradient(gradient, quant_max(2), 3)[[0, 3]] == 0)
    assert torch.all(quantize_gradient(torch.zeros(5), quant_max(8), 3) == 0)


@pytest.mark.parametrize("size", [1e-8, 1e-20, 1e-30])
def test_tiny_gradients_keep_their_resolution(size: float) -> None:
    gradient = torch.randn(2000) * size
    rounded = quantize_gradient(gradient, quant_max(8), 1)
    assert len(rounded.unique()) > 100
    assert (rounded.double() - gradient.double()).norm() < 0.1 * gradient.double().norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_does_not_become_one(value: float) -> None:
    gradient = torch.tensor([1.0, value, -1.0])
    assert not torch.isfinite(quantize_gradient(gradient, quant_max(8), 0)).all()


def test_memory_format_does_not_matter_for_validity() -> None:
    gradient = torch.randn(2, 3, 4, 5)
    for x in (gradient.contiguous(memory_format=torch.channels_last), gradient.transpose(2, 3)):
        rounded = quantize_gradient(x, quant_max(8), 1)
        step = (gradient.max() - gradient.min()) / 254
        assert torch.all((rounded - x).abs() <= step * 1.001)


def test_the_forward_value_is_untouched_and_the_backward_is_quantized() -> None:
    x = torch.randn(50, requires_grad=True)
    y = with_quantized_gradient(x, quant_max(2), 9)
    assert torch.equal(y, x)
    gradient = torch.randn(50)
    y.backward(gradient)
    assert torch.equal(x.grad, quantize_gradient(gradient, quant_max(2), 9))
