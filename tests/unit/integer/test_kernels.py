"""Sums, products and means of codes against onnxruntime's kernels: every pair of codes, and scales that make ties."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cpt_deploy.integer.arithmetic import add, global_average, multiply
from cpt_deploy.integer.tensors import QuantizedTensor

CODES = np.arange(256, dtype=np.uint8)
LEFT, RIGHT = (grid.reshape(-1) for grid in np.meshgrid(CODES, CODES))

#: Powers of two give exact ties at half a code; other scales give the general case.
scales = st.one_of(st.integers(-6, 0).map(lambda power: 2.0**power), st.floats(0.003, 0.3).map(np.float32).map(float))
zero_points = st.one_of(st.just(0), st.integers(0, 255))


def session(kind: str, names: list[str], **attributes: int) -> onnxruntime.InferenceSession:
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if name.startswith("scale") else TensorProto.UINT8, None if name in "abx" else []
        )
        for name in names
    ]
    node = helper.make_node(kind, names, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph([node], kind, inputs, [helper.make_tensor_value_info("y", TensorProto.UINT8, None)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


BINARY = ["a", "scale_a", "zero_a", "b", "scale_b", "zero_b", "scale_y", "zero_y"]
KERNELS = {"QLinearMul": multiply, "QLinearAdd": add}
SESSIONS = {kind: session(kind, BINARY) for kind in KERNELS}
MEAN = session("QLinearGlobalAveragePool", ["x", "scale_x", "zero_x", "scale_y", "zero_y"], channels_last=0)


def tensor(scale: float, zero_point: int) -> QuantizedTensor:
    return QuantizedTensor("t", scale, zero_point, 8, (1,))


def parameters(name: str, quantized: QuantizedTensor) -> dict[str, np.ndarray]:
    return {
        f"scale_{name}": np.array(quantized.scale, np.float32),
        f"zero_{name}": np.array(quantized.zero_point, np.uint8),
    }


@pytest.mark.parametrize("kind", KERNELS)
@given(
    scales, scales, st.floats(0.2, 60).map(np.float32).map(float), st.booleans(), zero_points, zero_points, zero_points
)
@settings(max_examples=40)
def test_every_pair_of_codes_agrees(
    kind: str, scale_a: float, scale_b: float, ratio: float, power: bool, zero_a: int, zero_b: int, zero_y: int
) -> None:
    size = scale_a * scale_b if kind == "QLinearMul" else scale_a
    scale_y = float(np.float32(size * (2.0 ** round(np.log2(ratio)) if power else ratio)))
    a, b, y = tensor(scale_a, zero_a), tensor(scale_b, zero_b), tensor(scale_y, zero_y)
    feed = {"a": LEFT, "b": RIGHT, **parameters("a", a), **parameters("b", b), **parameters("y", y)}
    served = SESSIONS[kind].run(None, feed)[0]
    codes = KERNELS[kind]([torch.from_numpy(LEFT).float(), torch.from_numpy(RIGHT).float()], [a, b], y)
    assert np.array_equal(codes.numpy(), served)


@given(st.integers(1, 9), scales, scales, zero_points, zero_points, st.integers(0, 1000))
@settings(max_examples=60)
def test_means_agree(side: int, scale_x: float, scale_y: float, zero_x: int, zero_y: int, seed: int) -> None:
    x, y = QuantizedTensor("x", scale_x, zero_x, 8, (300, side, side)), tensor(scale_y, zero_y)
    codes = np.random.default_rng(seed).integers(0, 256, (1, 300, side, side)).astype(np.uint8)
    served = MEAN.run(None, {"x": codes, **parameters("x", x), **parameters("y", y)})[0]
    assert np.array_equal(global_average(torch.from_numpy(codes).float(), x, y).numpy(), served)
