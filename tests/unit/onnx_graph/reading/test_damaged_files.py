"""Damaged and malicious ONNX files: one clear line, or the function that onnxruntime computes of them; never a hang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cpt_deploy.errors import CptError, DataError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import OnnxNetwork, read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from tests.unit.onnx_graph.reading.networks import Network, run, samples

pytestmark = pytest.mark.timeout(120)
SAMPLES = samples((2, 3, 8, 8), 2)


def small() -> onnx.ModelProto:
    network = Network(["N", 3, 8, 8])
    x = network.norm(network.conv("x", 3, 4), 4)
    x = network.op("Add", network.op("Relu", x), network.conv(network.op("Sigmoid", x), 4, 4))
    x = network.op("Reshape", network.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), np.array([0, -1]))
    return network.model(network.op("Gemm", x, network.weight(5, 64), network.weight(5), transB=1))


def _some(items: Any, place: int) -> Any:
    return items[place % len(items)]


def _cycle(model: onnx.ModelProto, place: int) -> None:
    node = _some(model.graph.node, place)
    node.input[0] = model.graph.node[-1].output[0]


def _unknown_input(model: onnx.ModelProto, place: int) -> None:
    node = _some(model.graph.node, place)
    node.input[place % len(node.input)] = "nobody_makes_this"


def _missing_constant(model: onnx.ModelProto, place: int) -> None:
    del model.graph.initializer[place % len(model.graph.initializer)]


def _wrong_dtype(model: onnx.ModelProto, place: int) -> None:
    _some(model.graph.initializer, place).data_type = _some((TensorProto.INT64, TensorProto.DOUBLE, 0, 99), place)


def _wrong_shape(model: onnx.ModelProto, place: int) -> None:
    tensor = _some(model.graph.initializer, place)
    del tensor.dims[:]
    tensor.dims.extend(_some(([7], [2**40, 2**40], [-3], [0], []), place))


def _cut_values(model: onnx.ModelProto, place: int) -> None:
    tensor = _some(model.graph.initializer, place)
    tensor.raw_data = tensor.raw_data[: place % (len(tensor.raw_data) or 1)]


def _twice(model: onnx.ModelProto, place: int) -> None:
    model.graph.node.append(_some(model.graph.node, place))


def _no_version(model: onnx.ModelProto, place: int) -> None:
    del model.opset_import[:]
    if place % 2:
        model.opset_import.append(helper.make_opsetid("", 9999))


def _other_operator(model: onnx.ModelProto, place: int) -> None:
    node = _some(model.graph.node, place)
    node.op_type, node.domain = _some((("NoSuch", ""), ("Conv", "com.unknown"), ("Loop", ""), ("If", "")), place)


def _other_attribute(model: onnx.ModelProto, place: int) -> None:
    node = _some(model.graph.node, place)
    node.attribute.append(helper.make_attribute(_some(("pads", "axis", "strides", "group"), place), [-(2**40)] * 3))


def _other_input_type(model: onnx.ModelProto, place: int) -> None:
    kind = model.graph.input[0].type.tensor_type
    if place % 2:
        kind.elem_type = TensorProto.STRING
    else:
        kind.shape.dim[place % 4].dim_value = _some((-1, 0, 2**40, 5), place)


def _no_output(model: onnx.ModelProto, place: int) -> None:
    model.graph.output[0].name = _some(("nobody_makes_this", "x", ""), place)


def _functions_that_call_themselves(model: onnx.ModelProto, place: int) -> None:
    own = [helper.make_node("Own", ["a"], ["b"], domain="own")]
    model.functions.append(helper.make_function("own", "Own", ["a"], ["b"], own, [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = _some(model.graph.node, place)
    node.op_type, node.domain = "Own", "own"
    del node.attribute[:], node.input[1:]


DAMAGES: tuple[Callable[[onnx.ModelProto, int], None], ...] = (
    _cycle, _unknown_input, _missing_constant, _wrong_dtype, _wrong_shape, _cut_values, _twice, _no_version,
    _other_operator, _other_attribute, _other_input_type, _no_output, _functions_that_call_themselves,
)  # fmt: skip


def check(content: bytes) -> bool:
    """Read and quantize a file; return whether it could be, and compare what it computes."""
    try:
        read = read_onnx(content)
        quantized = quantize_onnx(read, SAMPLES).graph
    except CptError as error:
        message = str(error)
    else:
        return _computes_the_same(content, read, quantized)
    assert "\n" not in message
    assert len(message) < 1000
    return False


def _computes_the_same(content: bytes, read: OnnxNetwork, quantized: IntegerGraph) -> bool:
    wanted = run(content, SAMPLES[0])
    for model in (read.to_model().SerializeToString(), write_onnx(quantized)):
        for one, other in zip(wanted, run(model, SAMPLES[0]), strict=True):
            assert one.shape == other.shape
            scale = float(np.abs(one).max(initial=1e-6))
            np.testing.assert_allclose(other, one, atol=0.2 * scale)
    return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(DAMAGES), st.integers(0, 40)), min_size=1, max_size=2))
def test_wrong_graphs(damages: list[tuple[Callable[[onnx.ModelProto, int], None], int]]) -> None:
    model = small()
    for damage, place in damages:
        damage(model, place)
    check(model.SerializeToString())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 5))
def test_flipped_and_missing_bytes(flips: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(small().SerializeToString())
    for place, value in flips:
        content[place % len(content)] = value
    check(bytes(content[: len(content) - cut * len(content) // 7]))


def test_a_whole_file_is_quantized() -> None:
    assert check(small().SerializeToString())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "missing.bin", "link.bin", ""])
def test_external_data_outside_of_the_folder_is_not_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError) as caught:
        read_onnx(folder / "net.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(CptError):  # there is no folder of a content
        read_onnx(model.SerializeToString())
