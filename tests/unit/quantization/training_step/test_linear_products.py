"""Whichever unit makes a product of codes, it is the exact integer; so a run does not depend on which one is faster."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpt_deploy.quantization.kernels import QuantizationParameters, active
from cpt_deploy.quantization.training_step import linear_products
from cpt_deploy.quantization.training_step.linear_products import (
    MAX_ROWS,
    Trial,
    Unit,
    forward,
    trial_of,
    weight_gradient,
)
from cpt_deploy.quantization.training_step.products import int8_is_exact

pytestmark = pytest.mark.skipif(not int8_is_exact(), reason="this processor has no exact int8 products")
KERNELS = active().kernels


def qparams_with(zero_point: int) -> QuantizationParameters:
    return QuantizationParameters(torch.tensor(0.1), torch.tensor(float(zero_point)), torch.tensor(255.0))


def on_each_unit(monkeypatch: pytest.MonkeyPatch, product: str, shape: tuple[int, int, int]) -> Iterator[Unit]:
    """Makes the choice of each unit in turn, as if it had been the faster one."""
    key, units = linear_products._key(product, shape), get_args(Unit)
    for unit in units:
        monkeypatch.setitem(linear_products._trials, key, Trial(unit))
        yield unit


@pytest.mark.parametrize("extreme", [True, False])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_forward_gives_the_same_bits_by_each_unit(
    monkeypatch: pytest.MonkeyPatch, zero_point: int, extreme: bool
) -> None:
    torch.manual_seed(0)
    shape = (33, 518, 9)  # the most inputs whose sum cannot leave float32
    codes = torch.full((33, 518), 255 if zero_point == 0 else 0, dtype=torch.uint8)
    weight = torch.full((9, 518), 127, dtype=torch.int8)
    if not extreme:
        codes, weight = codes.random_(0, 256), weight.random_(-127, 128)
    factor, offset = torch.rand(9), torch.randn(9)
    sums = (codes.double() - zero_point) @ weight.double().t()
    expected = sums.float() * factor + offset
    for _ in on_each_unit(monkeypatch, "forward", shape):
        assert torch.equal(forward(codes, qparams_with(zero_point), weight, KERNELS, factor, offset), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("least", [-255, -128, -3, 0])
def test_a_weights_gradient_is_the_same_by_each_unit(
    monkeypatch: pytest.MonkeyPatch, least: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    gradient = torch.randint(least, least + 256, (258, 12)).to(dtype)
    codes = torch.randint(0, 256, (258, 16), dtype=torch.uint8)
    codes[:, 0] = 255
    gradient[:, 0] = least
    for zero_point in (0, 255):
        expected = (gradient.double().t() @ (codes.double() - zero_point)).float()
        for _ in on_each_unit(monkeypatch, "weight gradient", (258, 16, 12)):
            assert torch.equal(weight_gradient(gradient, codes, qparams_with(zero_point), KERNELS), expected)


@given(rows=st.integers(1, 40), inputs=st.integers(1, 900), outputs=st.integers(1, 20), zero_point=st.integers(0, 255))
def test_any_shape_has_the_exact_integers(rows: int, inputs: int, outputs: int, zero_point: int) -> None:
    codes = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    gradient = torch.randint(-100, 156, (rows, outputs)).float()
    centred, ones, zeros = codes.double() - zero_point, torch.ones(outputs), torch.zeros(outputs)
    found = forward(codes, qparams_with(zero_point), weight, KERNELS, ones, zeros)
    assert torch.equal(found.double(), centred @ weight.double().t())
    found = weight_gradient(gradient, codes, qparams_with(zero_point), KERNELS)
    assert torch.equal(found.double(), gradient.double().t() @ centred)


def test_sums_beyond_24_bits_are_rounded_once() -> None:
    rows = MAX_ROWS
    codes, gradient = torch.full((rows, 8), 255, dtype=torch.uint8), torch.full((rows, 8), 255.0)
    gradient[::3] = 0.0
    exact = 255 * 255 * int((gradient[:, 0] > 0).sum())
    found = weight_gradient(gradient, codes, qparams_with(0), KERNELS)
    assert torch.all(found == torch.tensor(exact).float())
    weight = torch.full((8, 4097), 127, dtype=torch.int8)
    codes = torch.full((3, 4097), 255, dtype=torch.uint8)
    found = forward(codes, qparams_with(0), weight, KERNELS, torch.ones(8), torch.zeros(8))
    assert torch.all(found == torch.tensor(4097 * 255 * 127).float())


def test_a_shape_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_products, "_trials", {})
    trial = trial_of(20, 64, 16, KERNELS)
    assert trial.unit == min(trial.seconds, key=trial.seconds.__getitem__)
    assert set(trial.seconds) == {"int8", "float32"}
    assert trial_of(20, 64, 16, KERNELS) is trial
    assert trial_of(17, 64, 16, KERNELS) is trial  # up to the same power of two
    assert trial_of(33, 64, 16, KERNELS) is not trial


def test_a_unit_that_gives_other_integers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_products, "_trials", {})

    def other(product: Tensor) -> Tensor:
        return product + 1

    value = torch.ones(2, 2)
    found = linear_products._faster("forward", (2, 2, 2), {"int8": lambda: value, "float32": lambda: other(value)})
    assert torch.equal(found, value)
    assert list(linear_products._trials.values()) == [Trial("int8")]
