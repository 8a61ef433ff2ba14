"""What quantizing must not cut off or mix up, by the noise that it adds to the outputs of onnxruntime's float ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.errors import ConversionError, DataError
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.quantizing.ranges import _stride
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.reading.batches import with_free_batch
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers
from cpt_deploy.validation.onnx_files.files import example_inputs, read_file
from tests.unit.onnx_graph.reading.networks import Array, Network, run, samples

Samples = list[dict[str, Array]]


def decibels(file: bytes, given: Samples) -> list[float]:
    """Return the signal to noise ratio of each output of the quantized file, which has to be exact."""
    result = quantize_onnx(read_onnx(file), given)
    written = write_onnx(result.graph)
    assert compare_integers(result.graph, written, given[0]).mismatches == 0
    ratios = []
    for wanted, got in zip(run(file, given[0]), run(written, given[0]), strict=True):
        noise = float(np.square(wanted - got).sum())
        ratios.append(10 * np.log10(float(np.square(wanted).sum()) / noise) if noise else 200.0)
    return ratios


@pytest.mark.parametrize("shape", [(8, 512, 7, 7), (32, 1, 28, 28), (16, 48, 14, 14), (3, 5), (4, 0, 3)])
def test_all_places_of_each_axis_are_sampled(shape: tuple[int, ...]) -> None:
    seen = np.unravel_index(np.arange(int(np.prod(shape)))[:: _stride(int(np.prod(shape)))], shape)
    for axis, size in enumerate(shape):
        assert len(np.unique(seen[axis])) == min(size, int(np.prod(shape)))


def test_dark_borders_do_not_decide_ranges() -> None:
    network = Network(["N", 16, 7, 7])
    x = network.conv("x", 16, 512, 1)
    file = network.file(network.conv(x, 512, 4, 1))
    border = np.zeros((7, 7), np.float32)
    border[1:-1, 1:-1] = 1
    given = [{"x": sample["x"] * border} for sample in samples((8, 16, 7, 7), 4)]
    assert min(decibels(file, given)) > 25


@pytest.mark.parametrize("offset", [0.3, 1.0, -4.0])
@pytest.mark.parametrize("clamp", ["Relu", "Clip"])
def test_a_clamp_before_a_uniform_linear_function_stays(clamp: str, offset: float) -> None:
    network = Network(["N", 4, 8, 8])
    ends = () if clamp == "Relu" else (np.float32(0), np.float32(2))
    x = network.op(clamp, network.conv("x", 4, 8), *ends)
    x = network.op("Add", x, np.float32([offset]))
    file = network.file(network.conv(network.conv(x, 8, 8), 8, 4))
    assert min(decibels(file, samples((4, 4, 8, 8)))) > 25


@pytest.mark.parametrize("reader", ["output", "float"])
def test_an_input_of_a_hard_swish_that_is_read_elsewhere_is_not_cut_off(reader: str) -> None:
    network = Network(["N", 4, 8, 8])
    a = network.conv("x", 4, 8)
    network.nodes[-1].input[1] = network.constant(4 * network.weight(8, 4, 3, 3))
    x = network.op("Mul", a, network.op("HardSigmoid", a, alpha=1 / 6, beta=0.5))
    other = a if reader == "output" else network.op("ReduceL2", a, axes=[1, 2, 3])
    file = network.file(network.conv(x, 8, 4), other)
    assert min(decibels(file, samples((4, 4, 8, 8)))) > 25


@pytest.mark.parametrize("length", [6, 8, 12])
@pytest.mark.parametrize("first", ["Conv", "MatMul"])
def test_layers_of_different_axes_read_one_tensor(first: str, length: int) -> None:
    network = Network(["N", 4, length])
    b = network.op("Relu", network.op("Conv", "x", network.weight(4, 4, 3), network.weight(4), pads=[1, 1]))
    layers: dict[str, Callable[[], str]] = {
        "Conv": lambda: network.op("Conv", b, network.weight(3, 4, 1), network.weight(3)),
        "MatMul": lambda: network.op("MatMul", b, network.weight(length, 5)),
    }
    outputs = [layers[kind]() for kind in sorted(layers, reverse=first == "MatMul")]
    ramp = np.linspace(0, 3, length, dtype=np.float32)
    given = [{"x": sample["x"] + ramp} for sample in samples((8, 4, length), 4)]
    assert min(decibels(network.file(*outputs), given)) > 25


def test_a_padding_that_shifts_channels_is_not_taken_for_one_that_keeps_them() -> None:
    network = Network(["N", 4, 8, 8])
    x = network.conv("x", 4, 8)
    scales = (10.0 ** np.linspace(-2, 1, 8)).astype(np.float32).reshape(8, 1, 1, 1)
    network.nodes[-1].input[1] = network.constant(scales * network.weight(8, 4, 3, 3))
    x = network.op("Pad", x, np.array([0, 1, 0, 0, 0, -1, 0, 0]))
    x = network.conv(x, 8, 8, group=8)
    network.nodes[-1].input[1] = network.constant(network.weight(8, 1, 3, 3) / np.roll(scales, 1, axis=0))
    assert min(decibels(network.file(network.conv(x, 8, 4)), samples((4, 4, 8, 8)))) > 12


@pytest.mark.parametrize("activation", ["Relu", "Clip", "Tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_before_an_activation_in_float_is_on_integers(activation: str, bias: bool) -> None:
    network = Network(["N", 16])
    x = network.op("Gemm", "x", network.weight(16, 8), *([network.weight(8)] if bias else []))
    ends = (np.float32(-1), np.float32(1)) if activation == "Clip" else ()
    x = network.op("LayerNormalization", network.op(activation, x, *ends), np.ones(8, np.float32))
    file = network.file(network.op("MatMul", x, network.weight(8, 4)))
    assert min(decibels(file, samples((8, 16)))) > 25
    operators = optimized_operators(write_onnx(quantize_onnx(read_onnx(file), samples((8, 16))).graph))
    assert operators["QGemm"] == 2
    assert not {"Gemm", "FusedGemm", "MatMul"} & operators.keys()


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_a_padding_of_some_axes_may_read_an_output_and_name_a_value_that_it_does_not_use(mode: str) -> None:
    network = Network(["N", 4, 8, 8], opset=18)
    a = network.conv("x", 4, 8)
    x = network.op("Pad", a, np.array([1, 1, 1, 2]), np.float32(0), np.array([2, 3]), mode=mode)
    assert min(decibels(network.file(network.conv(x, 8, 4), a), samples((4, 4, 8, 8)))) > 25


def test_functions_of_another_opset_are_inlined() -> None:
    network = Network(["N", 3, 8, 8])
    model = network.model(network.op("Neg", network.conv("x", 3, 4)))
    opsets = [helper.make_opsetid("", 13)]
    function = helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    last = model.graph.node[-1]
    last.domain, last.op_type = "own", "f"
    assert min(decibels(model.SerializeToString(), samples((2, 3, 8, 8)))) > 25


def test_a_size_of_the_batchs_name_keeps_a_name_of_its_own() -> None:
    network = Network(["B", 3, "N"])
    file = network.file(network.op("Conv", "x", network.weight(4, 3, 1), network.weight(4)))
    for network_read in (read_onnx(file), with_free_batch(read_onnx(file))):
        signature = quantize_onnx(network_read, samples((2, 3, 9))).graph.signature
        assert [tensor.whole_shape for tensor in signature.inputs] == [("N", 3, "N_1")]


def test_inputs_of_any_size_are_not_tried_in_sizes_that_fill_the_memory(tmp_path: Path) -> None:
    network = Network(["a", "b", "c", "d", "e"])
    path = tmp_path / "free.onnx"
    path.write_bytes(network.file(network.op("Conv", "x", network.weight(2, 3, 1, 1, 1))))
    with pytest.raises(Exception, match=r"free\.onnx to run on random inputs"):
        example_inputs(read_file(path))


def test_indices_are_those_of_the_axis_that_is_gathered(tmp_path: Path) -> None:
    network = Network(["N"])
    network.inputs[0].type.tensor_type.elem_type = TensorProto.INT64
    path = tmp_path / "table.onnx"
    path.write_bytes(network.file(network.op("Gather", network.weight(100, 3), "x", axis=1)))
    assert example_inputs(read_file(path))["x"].max() < 3


def test_files_that_state_too_little_or_twice_are_one_line() -> None:
    network = Network(["N", 3])
    network.inputs[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ConversionError, match="a stated number of dimensions"):
        quantize_onnx(read_onnx(network.file(network.op("MatMul", "x", network.weight(3, 2)))), samples((2, 3)))
    network = Network(["N", 3])
    model = network.model(network.op("MatMul", "x", network.weight(3, 2)))
    model.graph.output.append(onnx.ValueInfoProto())
    model.graph.output[1].CopyFrom(model.graph.output[0])
    with pytest.raises(DataError, match="more than once"):
        read_onnx(model.SerializeToString())
