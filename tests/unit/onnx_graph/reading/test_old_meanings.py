"""Operators of old opsets that computed something else: what is read computes what onnxruntime does of the file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import OnnxNetwork, read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from tests.unit.onnx_graph.reading.networks import Network, run, samples

SHAPE = (2, 3, 7, 9)


def same(file: bytes, shape: Sequence[int] = SHAPE) -> OnnxNetwork:
    """Read a file; check that all outputs are those that onnxruntime computes of it."""
    (sample,) = samples(shape, 1)
    read = read_onnx(file)
    got = run(read.to_model().SerializeToString(), sample, optimize=False)
    for wanted, other in zip(run(file, sample, optimize=False), got, strict=True):
        assert other.dtype == wanted.dtype
        np.testing.assert_allclose(other, wanted, rtol=1e-5, atol=1e-6)
    return read


@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 3, 1), (1, 1, 1.5, 1.5), (1, 1, 1.7, 2.3)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_enlarging(opset: int, mode: str, scales: tuple[float, ...]) -> None:
    network = Network(SHAPE, opset=opset)
    if opset < 9:
        y = network.op("Upsample", "x", mode=mode, scales=[float(scale) for scale in scales])
    else:
        y = network.op("Upsample" if opset == 9 else "Resize", "x", np.float32(scales), mode=mode)
    read = same(network.file(y))
    assert [node.op_type for node in read.nodes] == ["Resize"]


@pytest.mark.parametrize(
    "scales", [(1, 1, 0.5, 0.5), (1, 1, 0.6, 0.4), (1, 1, 1.7, 0.6), (1, 1, 0.35, 3), (0.5, 1, 2, 1)]
)
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_making_smaller(mode: str, computed: bool, scales: tuple[float, ...]) -> None:
    if mode == "linear" and scales[0] != 1:
        pytest.skip("onnxruntime interpolates the last two dimensions only")
    network = Network(SHAPE, opset=10)
    factors: Any = np.float32(scales)
    if computed:
        zero = network.op("Mul", network.op("ReduceMax", "x", keepdims=0), np.float32(0))
        factors = network.op("Add", zero, factors)
    same(network.file(network.op("Resize", "x", factors, mode=mode)))


def test_a_resize_in_a_branch() -> None:
    network = Network(["N", "C", "H", "W"], opset=10)
    condition = network.op("Greater", network.op("ReduceMax", "x", keepdims=0), np.float32(-100))
    scales = network.constant(np.float32([1, 1, 0.6, 1.7]))
    value = onnx.ValueInfoProto(name="made")
    resize = helper.make_graph([helper.make_node("Resize", ["x", scales], ["made"])], "resize", [], [value])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["made"])], "other", [], [value])
    same(network.file(network.op("If", condition, then_branch=resize, else_branch=other)))


def test_labels_of_a_segmentation_network() -> None:
    network = Network(["N", 3, 7, 9], opset=9)
    x = network.op("Conv", network.op("Relu", network.conv("x", 3, 8)), network.weight(4, 8, 3, 3), pads=[1] * 4)
    x = network.op("Upsample", x, np.float32([1, 1, 4, 4]), mode="linear")
    file = network.file(network.op("ArgMax", x, axis=1, keepdims=0))
    same(file)  # a fifth of the labels was another
    given = samples(SHAPE)
    (wanted,), (got,) = run(file, given[0]), run(write_onnx(quantize_onnx(read_onnx(file), given).graph), given[0])
    assert np.mean(wanted != got) < 0.05


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1])
@pytest.mark.parametrize("opset", [7, 11, 12])
@pytest.mark.parametrize("free", [False, True])
def test_hardmax(opset: int, axis: int | None, free: bool) -> None:
    """Its axis began the dimensions that it took as one."""
    if opset < 11 and axis == -1:
        pytest.skip("axes had to be positive")
    network = Network([None] * 4 if free else SHAPE, opset=opset)
    same(network.file(network.op("Hardmax", "x", **({} if axis is None else {"axis": axis}))))


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 17])
def test_the_mask_of_a_dropout(opset: int) -> None:
    """It was false throughout before opset 12, and of the type of the input before opset 10."""
    network = Network(SHAPE, opset=opset)
    x = network.op("Dropout", network.op("Relu", "x"), outputs=2)
    same(network.file(network.op("Neg", x), f"{x}_1"))
    same(network.file(f"{x}_1"))
    mask = f"{x}_1" if opset < 10 else network.op("Cast", f"{x}_1", to=TensorProto.FLOAT)
    same(network.file(network.op("Add", x, mask)))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_padding_with_a_value_that_its_mode_does_not_need(mode: str) -> None:
    network = Network(SHAPE, opset=9)
    same(network.file(network.op("Pad", "x", mode=mode, pads=[0, 0, 1, 2, 0, 0, 0, -1], value=2.0)))
