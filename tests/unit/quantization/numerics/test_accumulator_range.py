"""The range of codes that keeps a channel's sums inside of int32."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from cpt_deploy.precision.accumulators import INT32_MOST, worst_sums
from cpt_deploy.quantization import QuantizationConfig, make_native, prepare, reduced_layers
from cpt_deploy.quantization.numerics import accumulator_range as sums
from cpt_deploy.quantization.numerics.accumulator_range import SUM_LIMIT, can_overflow, summed_quant_max
from cpt_deploy.quantization.numerics.affine import quantize_weight

WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)


@given(WEIGHTS, st.integers(16, 2000), st.integers(2, 8))
def test_codes_keep_the_limit_and_lose_little_more_than_they_must(array, limit, bits):
    weight, full = torch.from_numpy(array), torch.tensor(float(2 ** (bits - 1) - 1))
    with mock.patch.object(sums, "SUM_LIMIT", limit):
        quant_max = summed_quant_max(weight, full)
    codes, _ = quantize_weight(weight, quant_max.clamp(min=1.0))
    totals = codes.abs().sum(dim=1)
    for level, total, row in zip(quant_max.tolist(), totals.tolist(), array, strict=True):
        if level >= 1:
            assert total <= limit
        if level < full:  # one more code, all of them rounded up by a half, would not be certain to fit
            assert (level + 1) * np.abs(row).astype(np.float64).sum() / np.abs(row).max() + len(row) / 2 > limit


def test_the_limit_leaves_room_for_a_bias_whatever_the_zero_point():
    assert 255 * SUM_LIMIT + 2**26 <= INT32_MOST
    codes = np.full((1, SUM_LIMIT // 127), 127, np.int8)
    for zero_point in (0, 128, 255):
        assert worst_sums(codes, np.array([2**26]), quant_max=255, zero_point=zero_point).max() <= INT32_MOST


@pytest.mark.parametrize(("inputs", "possible"), [(64_000, False), (65_000, True)])
def test_only_layers_of_many_inputs_are_looked_at(inputs, possible):
    assert can_overflow(inputs) is possible


def test_more_bits_than_8_are_left_alone():
    quant_max = torch.tensor(32767.0)
    assert summed_quant_max(torch.ones(2, 70_000), quant_max).tolist() == [32767.0] * 2


def test_the_report_lists_layers_whose_range_is_smaller():
    network = nn.Sequential(nn.Flatten(), nn.Linear(70_000, 2))
    nn.init.ones_(network[1].weight)
    model = prepare(network, torch.zeros(2, 1, 7, 10000), QuantizationConfig()).eval()
    make_native(model)  # the limit of pairs is stricter here
    (layer,) = reduced_layers(model)
    assert (layer.layer, layer.channels, layer.reduced_channels) == ("1", 2, 2)
    assert 110 <= layer.min_quant_max < 127
