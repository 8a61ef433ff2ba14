"""The quantizers of the CPT paper's published code, against their formula in numpy and the laws that they obey."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt_deploy.quantization.modules.sbm import SbmQuantizer, fake_quantize_channels, round_gradient
from cpt_deploy.quantization.state.precision_state import PrecisionState

finite = st.floats(-1e3, 1e3, width=32).map(lambda v: np.float32(0.0 if abs(v) < 1e-6 else v))
tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=finite)
BITS = st.integers(2, 8)


def published(x: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """The formula of the published code in float32: scale = range / (2^b − 1), at least 1e-8; zero point = min."""
    most = np.float32(2**bits - 1)
    scale = np.maximum((high - low) / most, np.float32(1e-8))
    return np.rint(np.clip((x - low) / scale, 0, most)) * scale + low


def quantizer(bits: int) -> SbmQuantizer:
    precision = PrecisionState(bits, 0)
    return SbmQuantizer(precision, "scheduled", 0.1)


def quant_max(bits: int) -> torch.Tensor:
    return torch.tensor(2.0**bits - 1)


@given(tensors, BITS)
def test_activations_are_rounded_from_the_min_to_the_max_of_the_batch(array: np.ndarray, bits: int) -> None:
    assert np.array_equal(
        quantizer(bits)(torch.from_numpy(array)).numpy(), published(array, array.min(), array.max(), bits)
    )


@given(tensors, BITS)
def test_weights_are_rounded_from_the_min_to_the_max_of_their_output_channel(array: np.ndarray, bits: int) -> None:
    axes = tuple(range(1, array.ndim))
    low, high = array.min(axes, keepdims=True), array.max(axes, keepdims=True)
    rounded = fake_quantize_channels(torch.from_numpy(array), quant_max(bits))
    assert np.array_equal(rounded.numpy(), published(array, low, high, bits))
    assert all(len(channel.unique()) <= 2**bits for channel in rounded)


@given(tensors, BITS)
def test_values_stay_in_their_range_half_a_step_from_where_they_were(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array)
    rounded, span = quantizer(bits)(x), float(x.max() - x.min())
    inexact = 1e-5 * float(x.abs().max())  # of float32
    assert (rounded - x).abs().max() <= span / (2**bits - 1) / 2 + inexact
    assert x.min() - inexact <= rounded.min()
    assert rounded.max() <= x.max() + inexact
    assert len(rounded.unique()) <= 2**bits


@given(tensors, BITS)
def test_gradients_pass_straight_through_the_rounding(array: np.ndarray, bits: int) -> None:
    given_gradient = torch.linspace(-1, 1, array.size).view(array.shape)
    for function in (quantizer(bits), lambda x: fake_quantize_channels(x, quant_max(bits))):
        x = torch.from_numpy(array).requires_grad_()
        function(x).backward(given_gradient)
        assert torch.equal(x.grad, given_gradient)


@given(tensors, BITS, st.integers(0, 2**31))
def test_a_gradient_takes_the_values_of_its_bits_less_than_a_step_away(array: np.ndarray, bits: int, seed: int) -> None:
    gradient = torch.from_numpy(array)
    rounded = round_gradient(gradient, quant_max(bits), torch.tensor(seed))
    step = float(gradient.max() - gradient.min()) / (2**bits - 1)
    inexact = 1e-5 * float(gradient.abs().max())
    assert (rounded - gradient).abs().max() <= step + inexact
    assert gradient.min() - inexact <= rounded.min()
    assert rounded.max() <= gradient.max() + inexact
    assert len(rounded.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_noise_of_a_gradient_is_unbiased_also_at_the_ends_of_its_range(bits: int) -> None:
    gradient, draws = torch.linspace(-0.3, 1.0, 97), 2_000
    step = 1.3 / (2**bits - 1)
    mean = torch.stack([round_gradient(gradient, quant_max(bits), torch.tensor(seed)) for seed in range(draws)]).mean(0)
    assert (mean - gradient).abs().max() < 5 * step / 2 / draws**0.5  # five standard errors of a step's rounding


def test_real_zero_is_no_quantized_value_so_that_zeros_become_noise() -> None:
    gradient = torch.cat([torch.zeros(1_000), torch.tensor([-0.3, 1.0])])
    rounded = round_gradient(gradient, quant_max(2), torch.tensor(1))[:1_000]
    assert {round(value, 4) for value in rounded.unique().tolist()} == {-0.3, 0.1333}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_noise_is_that_of_the_seed_and_of_the_place_in_memory(layout: torch.memory_format) -> None:
    gradient = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout)
    first, again, other = (round_gradient(gradient, quant_max(2), torch.tensor(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.stride() == gradient.stride()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_does_not_become_one(value: float) -> None:
    x = torch.tensor([[1.0, value, -1.0]])
    assert not torch.isfinite(round_gradient(x, quant_max(8), torch.tensor(0))).all()
    assert not torch.isfinite(quantizer(8)(x)).all()
    assert not torch.isfinite(fake_quantize_channels(x, quant_max(8))).all()


def test_evaluation_uses_the_average_of_the_batches_and_clamps_to_it() -> None:
    module, rng = quantizer(4), np.random.default_rng(0)
    batches = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(5)]
    low, high = batches[0].min(), batches[0].max()
    for number, batch in enumerate(batches):
        module(torch.from_numpy(batch))
        weight = max(1 / (number + 1), 0.1)  # a plain mean at first, then 0.9 of the average is kept
        low, high = low + weight * (batch.min() - low), high + weight * (batch.max() - high)
    module.eval()
    x = rng.normal(size=(50, 3)).astype(np.float32) * 3
    expected = published(x, np.float32(low), np.float32(high), 4)
    assert np.allclose(module(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    assert expected.min() == pytest.approx(low)


def test_half_precision_is_rounded_in_float32() -> None:
    x = torch.randn(40, 3).bfloat16()
    array = x.float().numpy()
    assert np.array_equal(quantizer(8)(x).numpy(), published(array, array.min(), array.max(), 8))


def test_a_channel_and_a_tensor_of_one_value_keep_it() -> None:
    weight = torch.full((2, 3, 1, 1), 0.7)
    assert torch.equal(fake_quantize_channels(weight, quant_max(3)), weight)
    assert torch.equal(quantizer(3)(weight), weight)
    assert torch.equal(round_gradient(weight, quant_max(3), torch.tensor(0)), weight)
