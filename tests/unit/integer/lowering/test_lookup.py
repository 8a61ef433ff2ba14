"""Tables of elementwise functions: right, and far enough from where rounding changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from cpt_deploy.integer.lowering.lookup import MARGIN, tabulate
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.numerics.affine import affine_parameters

ACTIVATIONS = [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.1), nn.ELU(), nn.Softplus(), nn.Hardsigmoid(), nn.Hardtanh()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
@given(st.floats(0.001, 0.2), st.integers(0, 255), st.floats(0.5, 2.0))
@settings(max_examples=25)
def test_every_entry_is_the_rounded_value_and_keeps_the_margin(
    activation: nn.Module, scale: float, zero_point: int, stretch: float
) -> None:
    source = QuantizedTensor("x", float(np.float32(scale)), zero_point, 8, (3,))
    values = activation((torch.arange(256, dtype=torch.float64) - zero_point) * source.scale).numpy()
    width = max(values.max(), 0) - min(values.min(), 0) or 1.0
    step = float(np.float32(stretch * width / 255))
    output = QuantizedTensor("y", step, int(np.clip(np.rint(-min(values.min(), 0) / step), 0, 255)), 8, (3,))
    lookup, moved = tabulate(activation, source, output)
    assert moved.scale == pytest.approx(step, rel=0.007)
    assert moved.zero_point == output.zero_point
    positions = values / moved.scale + moved.zero_point
    assert np.array_equal(lookup.table, np.clip(np.rint(positions), 0, 255))
    # an implementation that is off by 1e-7 of the function's value arrives at the same table
    for error in (-1e-7, 1e-7):
        again = np.clip(np.rint(values * (1 + error) / moved.scale + moved.zero_point), 0, 255)
        assert np.array_equal(lookup.table, again)
    assert MARGIN > 255 * 1e-7


@given(st.integers(2, 7), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_fewer_bits_for_the_same_range_are_the_quantizer_of_onnx(bits: int, width: float, part: float) -> None:
    low, high = torch.tensor(-part * width), torch.tensor((1 - part) * width)
    tensors = []
    for name, count in (("x", 8), ("y", bits)):
        scale, zero_point = affine_parameters(low, high, torch.tensor(float(2**count - 1)))
        tensors.append(QuantizedTensor(name, float(scale), int(zero_point), count, (256,)))
    lookup, moved = tabulate(nn.Identity(), *tensors)
    assert moved == tensors[1]  # the margin holds by arithmetic: no code of 8 bits is near the middle between two
    parameters = [np.array(v, t) for q in tensors for v, t in ((q.scale, np.float32), (q.zero_point, np.uint8))]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["real"]),
        helper.make_node("QuantizeLinear", ["real", "t", "w"], ["fewer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "requantize",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [256])],
        [helper.make_tensor_value_info("fewer", TensorProto.UINT8, [256])],
        [numpy_helper.from_array(value, name) for value, name in zip(parameters, "sztw", strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    codes = np.arange(256, dtype=np.uint8)
    expected = np.minimum(ReferenceEvaluator(model).run(None, {"codes": codes})[0], 2**bits - 1)
    assert np.array_equal(lookup.table, expected)
