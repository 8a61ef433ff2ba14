"""The quantizer against ONNX's own definition, and the laws that every quantizer obeys."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cpt_deploy.quantization.numerics.affine import (
    affine_parameters,
    channel_scales,
    dequantize,
    fake_quantize,
    fake_quantize_weight,
    quantize,
    quantize_weight,
    range_of,
    symmetric_quant_max,
    unsigned_quant_max,
)

finite = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-20 else v)
tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=finite)


def quant_max_of(bits: int) -> torch.Tensor:
    return torch.tensor(float(unsigned_quant_max(bits)))


def onnx_quantizer() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "q",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero", TensorProto.UINT8, []),
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


OPTIONS = onnxruntime.SessionOptions()
OPTIONS.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
SESSION = onnxruntime.InferenceSession(onnx_quantizer().SerializeToString(), OPTIONS)


@given(tensors)
def test_codes_and_values_are_those_of_onnx_quantize_linear(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    scale, zero_point = affine_parameters(*range_of(x), quant_max_of(8))
    feed = {"x": array, "scale": scale.numpy(), "zero": zero_point.numpy().astype(np.uint8)}
    codes, values = SESSION.run(["codes", "y"], feed)
    assert np.array_equal(quantize(x, scale, zero_point, quant_max_of(8)).numpy(), codes)
    assert np.array_equal(fake_quantize(x, scale, zero_point, quant_max_of(8)).numpy(), values)
    reference = ReferenceEvaluator(onnx_quantizer()).run(["codes"], feed)[0]
    assert np.array_equal(codes, reference)


@given(tensors, st.integers(2, 16))
def test_zero_is_exact_and_the_error_at_most_half_a_step(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array)
    quant_max = quant_max_of(bits)
    scale, zero_point = affine_parameters(*range_of(x), quant_max)
    assert zero_point == torch.round(zero_point)
    assert 0 <= zero_point <= quant_max
    assert fake_quantize(torch.zeros(1), scale, zero_point, quant_max) == 0
    y = fake_quantize(x, scale, zero_point, quant_max).double()
    # the zero point's own rounding moves the ends of the range by up to half a step more
    assert torch.all((y - x.double()).abs() <= scale.double() * (1.0 + 1e-4) + 1e-30)


@given(tensors, st.integers(2, 8))
def test_quantizing_twice_changes_nothing(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array)
    quant_max = quant_max_of(bits)
    scale, zero_point = affine_parameters(*range_of(x), quant_max)
    once = fake_quantize(x, scale, zero_point, quant_max)
    assert torch.equal(fake_quantize(once, scale, zero_point, quant_max), once)


@given(tensors, st.integers(2, 8))
def test_order_is_kept(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array).flatten().sort().values
    scale, zero_point = affine_parameters(*range_of(x), quant_max_of(bits))
    codes = quantize(x, scale, zero_point, quant_max_of(bits))
    assert torch.all(codes.diff() >= 0)
    assert codes.min() >= 0
    assert codes.max() <= unsigned_quant_max(bits)


def test_values_half_way_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 3.5])
    assert quantize(x, torch.tensor(1.0), torch.tensor(0.0), quant_max_of(8)).tolist() == [0.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_tensor_is_represented(value: float) -> None:
    x = torch.full((4,), value)
    scale, zero_point = affine_parameters(*range_of(x), quant_max_of(8))
    assert torch.allclose(fake_quantize(x, scale, zero_point, quant_max_of(8)), x, rtol=1e-6)


def test_the_range_of_a_channels_last_tensor_is_the_same() -> None:
    x = torch.randn(2, 5, 7, 3)
    assert range_of(x.contiguous(memory_format=torch.channels_last)) == range_of(x)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)), elements=finite),
    st.integers(2, 8),
)
def test_weights_follow_the_symmetric_formula_per_channel(array: np.ndarray, bits: int) -> None:
    quant_max = symmetric_quant_max(bits)
    codes, scales = quantize_weight(torch.from_numpy(array), torch.tensor(float(quant_max)))
    for channel, (row, scale) in enumerate(zip(array, scales.numpy(), strict=True)):
        largest = np.abs(row).max()
        expected_scale = np.float32(largest) / np.float32(quant_max) if largest else np.float32(1)
        assert scale == expected_scale
        expected = np.clip(np.rint(row / expected_scale), -quant_max, quant_max)
        assert np.array_equal(codes[channel].numpy(), expected)


def test_two_bit_weights_are_ternary() -> None:
    codes, _ = quantize_weight(torch.randn(4, 50), torch.tensor(float(symmetric_quant_max(2))))
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(10, requires_grad=True)
    scale, zero_point = affine_parameters(*range_of(x), quant_max_of(3))
    fake_quantize(x, scale, zero_point, quant_max_of(3)).backward(torch.arange(10.0))
    assert torch.equal(x.grad, torch.arange(10.0))
    weight = torch.randn(2, 5, requires_grad=True)
    fake_quantize_weight(weight, torch.tensor(7.0)).backward(torch.ones(2, 5))
    assert torch.equal(weight.grad, torch.ones(2, 5))


def test_dequantize_inverts_quantize_on_the_qparams() -> None:
    scale, zero_point = torch.tensor(0.25), torch.tensor(3.0)
    codes = torch.arange(8.0)
    assert torch.equal(quantize(dequantize(codes, scale, zero_point), scale, zero_point, quant_max_of(3)), codes)


def test_a_channel_of_zeros_has_scale_one() -> None:
    assert channel_scales(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), torch.tensor(2.0)).tolist() == [1.0, 1.0]
