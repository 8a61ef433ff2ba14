"""BatchNorm folding: the codes stay, the function stays, and degenerate channels stay finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpt_deploy.quantization.folding import BIAS_LIMIT, channelwise, fold, fold_layer
from cpt_deploy.quantization.modules.layers import QuantizedConv2d, quantized_layer
from cpt_deploy.quantization.numerics.affine import quantize_weight
from cpt_deploy.quantization.state.precision_state import PrecisionState


def layer_and_norm(seed: int) -> tuple[QuantizedConv2d, nn.BatchNorm2d]:
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6).eval()
    nn.init.normal_(norm.weight)  # both signs
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    layer = quantized_layer(conv, PrecisionState(8, 0), "scheduled", 0)
    assert isinstance(layer, QuantizedConv2d)
    return layer, norm


@given(st.integers(0, 10_000), st.integers(2, 8))
@settings(max_examples=40)
def test_folding_keeps_codes_up_to_sign_and_the_function_up_to_the_bias_qparams(seed: int, bits: int) -> None:
    layer, norm = layer_and_norm(seed)
    input_scale = 0.02
    folded = fold_layer(layer, norm, bits, input_scale)
    quant_max = layer.limited_quant_max(torch.tensor(float(2 ** (bits - 1) - 1)), layer.channel_weight)
    codes, scales = quantize_weight(layer.weight, quant_max)
    assert np.array_equal(np.abs(folded.codes), np.abs(codes.numpy()))
    x = torch.randint(-100, 100, (2, 3, 5, 5)).double()
    with torch.no_grad():
        weight = (codes * scales.view(-1, 1, 1, 1)).double()
        expected = norm.double()(nn.functional.conv2d(x * input_scale, weight, layer.bias.double()))
        accumulator = nn.functional.conv2d(
            x, torch.from_numpy(folded.codes).double() * 2**folded.shift, torch.from_numpy(folded.bias).double()
        )
    step = torch.from_numpy(folded.scales).double().view(-1, 1, 1) * input_scale
    # half a step for the rounded bias; the rest is float32 scales
    assert torch.all((accumulator * step - expected).abs() <= 0.5 * step + 1e-5 * (1 + expected.abs()))


@pytest.mark.parametrize("gamma", [0.0, 1e-12, -1e-30, 1e-38])
def test_a_channel_that_batchnorm_silences_keeps_its_bias(gamma: float) -> None:
    codes = np.full((2, 3), 100.0)
    folded = fold(codes, np.full(2, 0.01), np.array([gamma, 1.0]), np.array([0.7, 0.1]), 0.02)
    assert np.isfinite(folded.scales).all()
    assert (folded.scales > 0).all()
    assert np.abs(folded.bias.astype(np.int64)).max() <= BIAS_LIMIT
    offset = float(folded.bias[0]) * float(folded.scales[0]) * 0.02
    assert offset == pytest.approx(0.7, rel=1e-4)
    assert (folded.codes[1] == 100).all()


def test_channelwise_is_the_affine_function() -> None:
    factor, offset = np.array([2.0, -0.5, 1 / 6]), np.array([1.0, 0.25, 0.5])
    folded = channelwise(factor, offset, 2, 0.1)
    x = np.arange(-20, 20)
    for channel in range(3):
        code = float(folded.codes[channel].item())
        value = (x * code + folded.bias[channel]) * folded.scales[channel] * 0.1
        expected = x * 0.1 * factor[channel] + offset[channel]
        assert np.allclose(value, expected, atol=float(folded.scales[channel]) * 0.1)
