"""The pair limit: the largest range that keeps it, found by trying all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from cpt_deploy.quantization import QuantizationConfig, make_native, prepare, reduced_layers
from cpt_deploy.quantization.numerics.affine import quantize_weight
from cpt_deploy.quantization.numerics.saturation import portable_quant_max, saturation_limit, worst_pair_sum

FULL = torch.tensor(127.0)
WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 7)),
    elements=st.floats(-4, 4, width=32, allow_subnormal=False),
)


def pair_of(row: np.ndarray) -> int:
    """The greatest magnitude of a sum of one code or of two codes of one sign."""
    ordered = sorted(row.tolist())
    above = [code for code in ordered if code > 0][-2:]
    below = [code for code in ordered if code < 0][:2]
    return int(max(sum(above), -sum(below)))


@pytest.mark.parametrize(("bits", "limit"), [(8, 128), (7, 258), (2, 10922)])
def test_the_limit_is_what_int16_holds(bits: int, limit: int) -> None:
    assert saturation_limit(bits) == limit
    assert limit * (2**bits - 1) <= 32767 < (limit + 1) * (2**bits - 1)


@given(WEIGHTS)
def test_the_range_is_the_largest_one_within_the_limit(array: np.ndarray) -> None:
    weight = torch.from_numpy(array)
    quant_max = portable_quant_max(weight, FULL, 128)
    codes, _ = quantize_weight(weight, quant_max)
    assert worst_pair_sum(codes).tolist() == [pair_of(row) for row in codes.numpy()]
    assert worst_pair_sum(codes).amax() <= 128
    for channel, level in enumerate(quant_max.tolist()):
        assert 64 <= level <= 127
        for larger in range(int(level) + 1, 128):
            other, _ = quantize_weight(weight, torch.tensor(float(larger)))
            assert pair_of(other[channel].numpy()) > 128


def test_a_channel_that_keeps_the_limit_keeps_all_of_its_codes() -> None:
    weight = torch.tensor([[1.0, 0.001, -1.0], [1.0, 1.0, 0.0], [1.0, 0.5, 0.1], [0.0, 0.0, 0.0]])
    quant_max = portable_quant_max(weight, FULL, 128)
    assert quant_max.tolist() == [127, 64, 85, 127]
    codes, _ = quantize_weight(weight, quant_max)
    assert torch.equal(codes[0], quantize_weight(weight, FULL)[0][0])


@pytest.mark.parametrize("bits", range(2, 8))
def test_fewer_bits_than_8_keep_their_codes(bits: int) -> None:
    weight = torch.randn(5, 40)
    quant_max = torch.tensor(float(2 ** (bits - 1) - 1))
    assert torch.equal(
        quantize_weight(weight, portable_quant_max(weight, quant_max, 128))[0], quantize_weight(weight, quant_max)[0]
    )


def test_activations_below_8_bits_change_nothing() -> None:
    assert portable_quant_max(torch.randn(3, 9), FULL, saturation_limit(7)) is FULL


def test_more_bits_than_8_are_left_alone() -> None:
    weight = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    assert portable_quant_max(weight, torch.tensor(32767.0), 128).tolist() == [32767, 32767]


def test_evaluation_uses_the_reduced_codes_unless_native_and_the_report_counts_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))
    model = prepare(network, torch.zeros(2, 1, 4, 4), QuantizationConfig()).eval()
    conv = model.network.get_submodule("0")
    quant_max = portable_quant_max(conv.weight, FULL, 128)
    codes, scales = quantize_weight(conv.weight, quant_max)
    whole, whole_scales = quantize_weight(conv.weight, FULL)
    assert torch.equal(conv.quantized_weight, codes * scales.view(-1, 1, 1, 1))
    model.train()  # in training weights have their whole range
    assert torch.equal(conv.quantized_weight, whole * whole_scales.view(-1, 1, 1, 1))
    first, last = reduced_layers(model)
    assert (first.layer, first.channels, last.layer, last.channels) == ("0", 6, "3", 3)
    assert first.reduced_channels == int((quant_max < 127).sum())
    assert first.min_quant_max == int(quant_max.min())
    assert reduced_layers(model, 4) == [first, last]  # both stay at max_bits
    make_native(model.eval())
    assert reduced_layers(model) == []
    assert torch.equal(conv.quantized_weight, whole * whole_scales.view(-1, 1, 1, 1))
