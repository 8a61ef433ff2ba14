"""Transposed convolutions as ordinary ones: the executor and onnxruntime against torch's own in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph
from cpt_deploy.integer.lowering.subpixel import axes_of, transposed_convolution
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.folding import FoldedWeights
from tests.unit.integer.graphs import graph_between


@st.composite
def layers(draw: st.DrawFn, dimensions: int) -> tuple[nn.ConvTranspose1d | nn.ConvTranspose2d, tuple[int, ...]]:
    """A transposed convolution of at most 96 products a sum, and a size of its input."""
    axes = []
    for _ in range(dimensions):
        stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        output_padding = draw(st.integers(0, max(stride, dilation) - 1))
        kernel, padding, size = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 6))
        outputs = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
        assume(outputs > 0)
        axes.append((kernel, stride, padding, output_padding, dilation, size))
    kernels, strides, paddings, output_paddings, dilations, sizes = zip(*axes, strict=True)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    kind = nn.ConvTranspose1d if dimensions == 1 else nn.ConvTranspose2d
    layer = kind(
        inputs, outputs, kernels, strides, paddings, output_paddings, groups=groups, dilation=dilations
    )  # fmt: skip
    return layer, sizes


def integer_graph(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor, size, free: bool
) -> IntegerGraph:
    """The layer on codes of scale 1, whose sums are its output's codes less 128."""
    groups = layer.groups
    grouped = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    codes, scales = grouped.numpy().astype(np.int8), np.ones(layer.out_channels, np.float32)
    folded = FoldedWeights(np.ascontiguousarray(codes), 0, scales, bias.numpy().astype(np.int32))
    made = layer.double()(torch.zeros(1, layer.in_channels, *size, dtype=torch.double))
    sizes = ([None] * len(size), [None] * len(size)) if free else (size, made.shape[2:])
    source = QuantizedTensor("x", 1.0, 1, 8, (layer.in_channels, *sizes[0]))
    output = QuantizedTensor("y", 1.0, 128, 8, (layer.out_channels, *sizes[1]))
    steps = transposed_convolution(layer, folded, 8, (source, output, "layer"))  # type: ignore[arg-type]
    tensors = {tensor.name: tensor for tensor in (source, *(tensor for _, tensor in steps))}
    return graph_between("x", "y", tuple(operation for operation, _ in steps), tensors)


def check(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d, size: tuple[int, ...], seed: int, *, free: bool = False
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-1, 2, layer.weight.shape, generator=generator)
    bias = torch.randint(-9, 10, (layer.out_channels,), generator=generator)
    x = torch.randint(0, 3, (2, layer.in_channels, *size), generator=generator) - 1
    graph = integer_graph(layer, weight, bias, size, free)
    layer.weight.data, layer.bias.data = weight.double(), bias.double()
    expected = layer(x.double()).detach().numpy()
    assert np.abs(expected).max(initial=0) <= 127  # nothing saturates
    assert np.array_equal(IntegerExecutor(graph)(x.float()).numpy(), expected)
    session = open_session(write_onnx(graph), threads=1)
    assert np.array_equal(session.run(["logits"], {"image": x.float().numpy()})[0], expected)


@settings(max_examples=60)
@given(layers(2), st.integers(0, 99))
def test_two_dimensions_give_what_torch_gives(given_layer, seed: int) -> None:
    check(*given_layer, seed)


@settings(max_examples=30)
@given(layers(1), st.integers(0, 99))
def test_one_dimension_gives_what_torch_gives(given_layer, seed: int) -> None:
    check(*given_layer, seed)


@settings(max_examples=40)
@given(layers(2) | layers(1), st.integers(0, 99))
def test_one_graph_takes_any_size(given_layer, seed: int) -> None:
    layer, sizes = given_layer
    check(layer, sizes, seed, free=True)


@pytest.mark.parametrize(
    ("layer", "taps", "is_cut"),
    [
        (nn.ConvTranspose2d(4, 4, 2, 2), 1, False),
        (nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), 4, False),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1), 4, True),
        (nn.ConvTranspose2d(4, 4, 3, 1, 1), 9, False),
        (nn.ConvTranspose2d(4, 4, 3, 1, 2, dilation=2), 9, False),
    ],
)
def test_no_tap_is_computed_that_need_not_be(layer: nn.ConvTranspose2d, taps: int, is_cut: bool) -> None:
    """A kernel of size k and stride s needs ⌈k / s⌉ taps on an axis."""
    axes = axes_of(layer, (8, 8))
    assert math.prod(axis.kernel for axis in axes) == taps
    assert any(axis.kept != (0, axis.blocks * axis.stride) for axis in axes) is is_cut
