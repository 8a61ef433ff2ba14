"""Strided pointwise convolutions as dense ones of the pixels that they read: the same numbers as torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.modules.layers import QuantizedConv1d, QuantizedConv2d, quantized_layer
from cpt_deploy.quantization.modules.strided import seen_pixels, skips_pixels, spread_pixels
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.training_step.products import backward_products

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("conv", "skips"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1, stride=(1, 3)), True),
        (nn.Conv2d(4, 8, 1, stride=2, padding="valid"), True),
        (nn.Conv1d(4, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 1, stride=2, padding=1), False),
        (nn.Conv2d(4, 8, (1, 3), stride=2), False),
        (nn.Conv1d(4, 8, 3, stride=2), False),
    ],
)
def test_only_unpadded_pointwise_convolutions_skip_pixels(conv, skips):
    assert skips_pixels(conv, CPU) is skips
    assert not skips_pixels(conv, torch.device("cuda"))


strides = st.integers(1, 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), strides, strides, st.sampled_from([1, 2]))
def test_pixels_that_are_seen_and_spread_are_those_of_torchs_convolution(height, width, down, right, groups):
    conv = nn.Conv2d(4, 6, 1, stride=(down, right), groups=groups, bias=False).double()
    x = torch.randn(2, 4, height, width, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)

    dense = nn.functional.conv2d(seen_pixels(x, conv), conv.weight, groups=groups)
    torch.testing.assert_close(dense, y, rtol=0, atol=1e-12)
    inner = nn.functional.conv_transpose2d(gradient, conv.weight, groups=groups)
    torch.testing.assert_close(spread_pixels(inner, conv, x.shape), x.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [3, 4, 8])
@pytest.mark.parametrize("size", [7, 8])
def test_gradients_of_codes_are_those_of_a_convolution_in_float64(channels, size):
    conv = nn.Conv2d(channels, 6, 1, stride=2, bias=False)
    layer = quantized_layer(conv, PrecisionState(8, 0), "scheduled", 0)
    last = torch.channels_last
    codes = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8).contiguous(memory_format=last)
    half = (size + 1) // 2
    gradient = torch.randint(-127, 128, (2, 6, half, half)).float().contiguous(memory_format=last)
    weight = torch.randint(-127, 128, (6, channels, 1, 1)).float()
    kernels = TorchKernels()
    qparams = QuantizationParameters(torch.tensor(0.5), torch.tensor(7.0), torch.tensor(255.0))
    inward, of_weight = backward_products(layer, gradient, codes, qparams, weight, kernels, inward=True)

    x = (codes.double() - 7).requires_grad_()
    w = weight.double().requires_grad_()
    nn.functional.conv2d(x, w, stride=2).backward(gradient.double())
    assert torch.equal(inward.double(), x.grad)
    assert torch.equal(of_weight.double(), w.grad)


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (2, 4, 9)), (nn.Conv2d, (2, 4, 9, 7))])
def test_layers_by_themselves_compute_what_torch_computes(conv, shape):
    torch.manual_seed(0)
    layer = quantized_layer(conv(4, 6, 1, stride=2), PrecisionState(8, 0), "scheduled", 0).eval()
    assert isinstance(layer, QuantizedConv1d | QuantizedConv2d)
    x = torch.randn(shape)
    expected = layer._conv_forward(x, layer.quantized_weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
