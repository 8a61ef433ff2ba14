"""Networks that are read from ONNX and quantized: integers against onnxruntime's, outputs against float ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.integer.graph import from_dict, to_dict
from cpt_deploy.integer.operations import FullyConnected, OnnxPart
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.quantizing.quantizing import check_same
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from tests.unit.onnx_graph.reading.networks import Network, proven, run, samples

SAMPLES = samples((2, 3, 8, 8))
FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "ConvTranspose", "Add", "Mul"}


def residual() -> tuple[Network, str]:
    network = Network(["N", 3, 16, 16])
    x = network.op("Relu", network.norm(network.conv("x", 3, 8), 8))
    y = network.op("Clip", network.norm(network.conv(x, 8, 8), 8), np.float32(0), np.float32(6))
    x = network.op("Relu", network.op("Add", network.norm(network.conv(y, 8, 8), 8), x))
    x = network.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = network.conv(x, 8, 16, strides=[2, 2])
    x = network.op("Flatten", network.op("GlobalAveragePool", x))
    return network, network.op("Gemm", x, network.weight(5, 16), network.weight(5), transB=1)


def test_a_residual_network_has_no_layer_in_float() -> None:
    network, output = residual()
    result, operators = proven(network.file(output), samples((2, 3, 16, 16)))
    assert not FLOAT_LAYERS & operators.keys()
    assert operators["QLinearConv"] == 4
    assert operators["QGemm"] == 1
    assert result.placement.integer_share == 1
    assert not result.placement.float_layers


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 18, 21, 24])
def test_a_network_of_any_opset_is_quantized(opset: int) -> None:
    network = Network(["N", 3, 8, 8], opset=opset)
    x = network.op("Relu", network.norm(network.conv("x", 3, 8), 8))
    x = network.op("GlobalAveragePool", network.conv(x, 8, 4, group=2))
    result, operators = proven(network.file(network.op("Flatten", x)), samples((2, 3, 8, 8)))
    assert not FLOAT_LAYERS & operators.keys()
    assert len(result.graph.weighted()) == 2


def test_functions_that_are_spelt_out_become_integers() -> None:
    network = Network([1, 4, 12, 12])  # fixed batch
    x = network.conv("x", 4, 8)
    clipped = network.op("Clip", network.op("Add", x, np.float32([3])), np.float32(0), np.float32(6))
    x = network.conv(network.op("Div", network.op("Mul", x, clipped), np.float32([6])), 8, 8)  # hard swish
    x = network.conv(network.op("Mul", x, network.op("Sigmoid", x)), 8, 8)  # SiLU
    x = network.conv(network.op("LeakyRelu", x, alpha=0.1), 8, 8)
    x = network.conv(network.op("PRelu", x, np.full((1, 1, 1), 0.2, np.float32)), 8, 8)
    result, operators = proven(network.file(x), samples((1, 4, 12, 12)))
    assert not FLOAT_LAYERS & operators.keys()
    assert result.placement.float_operators == {}
    assert result.graph.signature.inputs[0].batch == 1


def test_what_only_moves_values_moves_integers() -> None:
    network = Network(["N", 8, 8, 4])  # channels last
    x = network.conv(network.op("Transpose", "x", perm=[0, 3, 1, 2]), 4, 8)
    x = network.op("Resize", x, "", np.float32([1, 1, 2, 2]), mode="nearest")
    parts = network.op("Split", x, axis=1, outputs=2)
    x = network.op("Concat", network.conv(parts, 4, 4), f"{parts}_1", axis=1)
    x = network.op("Pad", x, np.array([0, 0, 1, 0, 0, 0, 0, 1]))
    x = network.conv(x, 8, 8, pads=[0] * 4)
    x = network.op("DepthToSpace", x, blocksize=2)
    x = network.conv(network.op("Slice", x, np.array([1]), np.array([9]), np.array([2])), 2, 3)
    result, operators = proven(network.file(x), samples((2, 8, 8, 4)))
    assert not (FLOAT_LAYERS | {"Resize", "Pad"} - {"Resize", "Pad"}) & operators.keys()
    assert operators["DequantizeLinear"] == operators["QuantizeLinear"] == 1
    assert len(result.graph.weighted()) == 4


def test_transposed_convolutions_and_averages_are_layers() -> None:
    network = Network(["N", 4, 6, 6])
    x = network.conv("x", 4, 8)
    weight = network.weight(8, 3, 4, 4)
    x = network.op("ConvTranspose", x, weight, network.weight(6), strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    x = network.op("AveragePool", network.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    result, operators = proven(network.file(network.conv(x, 6, 2)), samples((2, 4, 6, 6)))
    assert not FLOAT_LAYERS & operators.keys()
    assert result.placement.integer_share == 1


def test_free_sizes_stay_free() -> None:
    network = Network(["batch", 3, "height", "width"])
    x = network.op("Relu", network.conv("x", 3, 8))
    pooled = network.op("HardSigmoid", network.conv(network.op("GlobalAveragePool", x), 8, 8, 1))
    x = network.op("Mul", x, pooled)
    shape = network.op("Shape", x)
    x = network.conv(x, 8, 4)
    sizes = network.op("Concat", network.op("Gather", shape, np.array([0])), np.array([4, -1]), axis=0)
    flat = network.op("Reshape", x, sizes)
    file = network.file(network.op("Transpose", flat, perm=[0, 2, 1]))
    result = quantize_onnx(read_onnx(file), samples((1, 3, 10, 12)))
    written = write_onnx(result.graph)
    assert result.graph.signature.inputs[0].whole_shape == ("N", 3, "height", "width")
    for shape_ in ((3, 3, 8, 8), (1, 3, 20, 7)):
        (sample,) = samples(shape_, 1)
        (wanted,), (got,) = run(file, sample), run(written, sample)
        assert wanted.shape == got.shape
    proven(file, samples((2, 3, 12, 10)))


def test_layers_of_a_transformer_have_real_results_and_attention_stays() -> None:
    network = Network(["N", 6, 16])
    normal = network.op("LayerNormalization", "x", np.ones(16, np.float32), np.zeros(16, np.float32))
    products = [network.op("MatMul", normal, network.weight(16, 16)) for _ in "qkv"]
    q, k, v = (network.op("Add", product, network.weight(16)) for product in products)
    scores = network.op("Softmax", network.op("MatMul", q, network.op("Transpose", k, perm=[0, 2, 1])))
    x = network.op("Add", network.op("MatMul", network.op("MatMul", scores, v), network.weight(16, 16)), "x")
    result, operators = proven(network.file(x), samples((2, 6, 16)))
    layers = [operation for operation in result.graph.operations if isinstance(operation, FullyConnected)]
    assert len(layers) == 4
    assert not {layer.output for layer in layers} & result.graph.tensors.keys()
    assert operators["MatMulIntegerToFloat"] == 4
    assert {layer.operator: layer.reason for layer in result.placement.float_layers} == {
        "MatMul": "its weights are computed"
    }
    assert 0 < result.placement.integer_share < 1


def test_a_perceptron_is_integers_up_to_its_real_result() -> None:
    network = Network(["N", 20])
    x = network.op("Relu", network.op("Gemm", "x", network.weight(20, 32).copy(), network.weight(32)))
    x = network.op("Relu", network.op("Add", network.op("MatMul", x, network.weight(32, 16)), network.weight(16)))
    x = network.op("Gemm", x, network.weight(3, 16), network.weight(1, 3), transB=1)
    result, operators = proven(network.file(x), samples((4, 20)))
    assert operators["QGemm"] == 3
    assert result.graph.outputs[0] not in result.graph.tensors


def test_other_operators_stay_what_they_were() -> None:
    network = Network(["N", 4, 8, 8])
    x = network.conv("x", 4, 8)
    x = network.conv(network.op("Mul", x, network.op("Tanh", network.op("Exp", x))), 8, 4)
    top = network.op("TopK", network.op("Flatten", x), np.array([5]), outputs=2)
    file = network.file(top, f"{top}_1")
    result = quantize_onnx(read_onnx(file), samples((2, 4, 8, 8)))
    kept = [o for o in result.graph.operations if isinstance(o, OnnxPart)]
    kinds = {node.op_type for part in kept for node in onnx.load_model_from_string(part.content.tobytes()).graph.node}
    assert {"Exp", "Tanh", "Mul", "TopK", "Flatten"} <= kinds
    values, places = run(write_onnx(result.graph), samples((2, 4, 8, 8))[0])
    assert values.shape == places.shape == (2, 5)
    assert places.dtype == np.int64


def test_control_flow_keeps_reading_tensors_from_outside() -> None:
    network = Network(["N", 4, 8, 8])
    x = network.conv("x", 4, 4)
    total = network.op("ReduceSum", "x", keepdims=0)
    condition = network.op("Greater", total, np.float32(0))
    value = onnx.ValueInfoProto(name="made")
    nodes = [onnx.helper.make_node(kind, [x], ["made"]) for kind in ("Neg", "Exp")]
    branches = [onnx.helper.make_graph([node], node.op_type, [], [value]) for node in nodes]
    x = network.conv(network.op("If", condition, then_branch=branches[0], else_branch=branches[1]), 4, 2)
    result, _ = proven(network.file(x), samples((2, 4, 8, 8)), least=15)
    assert len(result.graph.weighted()) == 2


def test_a_graph_of_a_file_survives_being_stored() -> None:
    network, output = residual()
    graph = quantize_onnx(read_onnx(network.file(output)), samples((2, 3, 16, 16))).graph
    data, arrays = to_dict(graph)
    restored = from_dict(data, arrays)
    assert write_onnx(restored) == write_onnx(graph)


def test_ranges_do_not_depend_on_how_samples_are_given() -> None:
    network, output = residual()
    read = read_onnx(network.file(output))
    given = samples((2, 3, 16, 16), 5)
    assert quantize_onnx(read, iter(given)).graph.tensors == quantize_onnx(read, given).graph.tensors


def test_samples_without_an_input_are_refused() -> None:
    network, output = residual()
    read = read_onnx(network.file(output))
    with pytest.raises(UsageError, match="Expected samples with the inputs x, but got y"):
        quantize_onnx(read, [{"y": np.zeros((1, 3, 16, 16), np.float32)}])
    with pytest.raises(UsageError, match="at least one sample"):
        quantize_onnx(read, [])
    with pytest.raises(ConversionError, match="to run on x float32"):
        quantize_onnx(read, [{"x": np.zeros((1, 4, 16, 16), np.float32)}])


def test_values_that_are_not_finite_are_refused() -> None:
    network, output = residual()
    with pytest.raises(ConversionError, match="Expected finite values"):
        quantize_onnx(read_onnx(network.file(output)), [{"x": np.full((1, 3, 16, 16), np.nan, np.float32)}])


@pytest.mark.parametrize("place", [(0, 0, 1, 1), (1, 2, 15, 15)])
def test_a_single_nan_is_refused(place: tuple[int, ...]) -> None:
    """Minima and maxima of onnxruntime leave NaN out, unless it comes first."""
    network, output = residual()
    given = samples((2, 3, 16, 16))
    given[5]["x"][place] = np.nan
    with pytest.raises(ConversionError, match="Expected finite values of 'x', but got nan"):
        quantize_onnx(read_onnx(network.file(output)), given)


def offset_labels(others: int) -> bytes:
    """Return a network that tells which of 10,000 values are positive, all but some of them rightly."""
    network = Network([1, 10_000])
    offsets = np.zeros(10_000, np.float32)
    offsets[:others] = 1000
    return network.file(network.op("Greater", network.op("Add", "x", offsets), np.float32(0)))


def test_outputs_that_are_no_real_numbers_are_compared() -> None:
    sample = {"x": np.full((1, 10_000), -1, np.float32)}
    read = read_onnx(offset_labels(0))
    check_same(read, sample)
    check_same(replace(read, original=offset_labels(10)), sample)  # as few as ties of two labels may be
    with pytest.raises(ConversionError, match="to compute the same as it was read, but its output 'greater1' differs"):
        check_same(replace(read, original=offset_labels(11)), sample)


def test_labels_of_another_shape_or_type_are_no_same_labels() -> None:
    network = Network([2, 5])
    labels = network.op("ArgMax", "x", axis=1)
    read = read_onnx(network.file(labels))
    for node in (
        onnx.helper.make_node("ArgMax", ["x"], [labels], axis=1, keepdims=0),
        onnx.helper.make_node("ArgMin", ["x"], [labels], axis=1),
    ):
        free = [onnx.ValueInfoProto(name=labels)]
        with pytest.raises(ConversionError, match="to compute the same as it was read"):
            check_same(replace(read, nodes=(node,), outputs=tuple(free)), samples((2, 5), 1)[0])


def test_outputs_that_change_between_calls_are_refused() -> None:
    network = Network([2, 50])
    noise = network.op("Greater", network.op("RandomNormalLike", "x"), "x")
    with pytest.raises(ConversionError, match="to compute the same each time"):
        quantize_onnx(read_onnx(network.file(noise)), samples((2, 50)))


@pytest.mark.parametrize("axes", [[-1], [3, 2], [-2, 3], [3, 2, 1, 0]])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("computed", [False, True])
def test_a_padding_of_some_axes_pads_these(mode: str, computed: bool, axes: list[int]) -> None:
    """onnxruntime computes convolutions of integers channels last, and moves what is between two of them along."""
    network = Network(["N", 3, 8, 8], opset=18)
    x = network.op("Relu", network.conv("x", 3, 4))
    before = {3: 1, 2: 2, 1: 0, 0: 0}
    widths: Any = np.array([before[axis % 4] for axis in axes] + [before[axis % 4] // 2 for axis in axes])
    if computed:
        count = network.op("Size", network.op("Relu", "x"))
        widths = network.op("Add", network.op("Mul", count, np.array([0])), widths)
    x = network.op("Pad", x, widths, "", np.array(axes), mode=mode)
    proven(network.file(network.conv(x, 4, 4)), samples((2, 3, 8, 8)))


@pytest.mark.parametrize("axes", [[3, 2], [-2, -1]])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("given", ["scales", "sizes"])
def test_a_resize_of_some_axes_resizes_these(given: str, mode: str, axes: list[int]) -> None:
    network = Network(["N", 3, 8, 8], opset=18)
    x = network.op("Relu", network.conv("x", 3, 4))
    sizes = ["", np.float32([2, 3])] if given == "scales" else ["", "", np.array([9, 20])]
    x = network.op("Resize", x, *sizes, mode=mode, axes=axes)
    proven(network.file(network.conv(x, 4, 4)), samples((2, 3, 8, 8)))


@pytest.mark.parametrize("others", [{}, {"pads": [1, 1, 1, 1]}, {"pads": [1, 1, 1, 1], "count_include_pad": 1}])
def test_a_mean_of_distant_values_stays_in_float(others: dict[str, Any]) -> None:
    """onnxruntime would fuse it with the quantizers around it, to an operator that has no dilations."""
    network = Network(["N", 3, 8, 8], opset=19)
    x = network.op("AveragePool", network.conv("x", 3, 4), kernel_shape=[2, 2], dilations=[2, 2], **others)
    _, operators = proven(network.file(network.conv(x, 4, 4)), samples((2, 3, 8, 8)))
    assert operators["AveragePool"] == 1


def test_integers_of_a_type_that_onnx_does_not_know_go_between_parts() -> None:
    network = Network(["N", 3, 8, 8])
    ends = (np.int32(0), np.int32(4), np.int32(1))
    places = network.op("Range", *ends, domain="com.microsoft")
    x = network.op("Gather", network.op("Sin", network.conv("x", 3, 4)), places, axis=1)
    proven(network.file(network.conv(network.op("Gather", network.conv(x, 4, 4), places, axis=1), 4, 4)), SAMPLES)


def test_an_output_of_onnxruntimes_own_operator_needs_no_type() -> None:
    network = Network(["N", 3, 8, 8])
    result, _ = proven(network.file(network.op("Gelu", network.conv("x", 3, 4), domain="com.microsoft")), SAMPLES)
    (output,) = result.graph.signature.outputs
    assert output.dtype == "float32"


def test_constants_of_the_file_may_have_any_names() -> None:
    network = Network(["N", 4, 8, 8])
    x = network.conv(network.op("Relu", network.conv("x", 4, 4)), 4, 4)
    for name in ("code_0", "real_zero", f"{x}_codes.scale", f"{x}.constant"):
        network.constants.append(onnx.numpy_helper.from_array(np.float32([[[0.5]]] * 4), name))
        x = network.op("Exp", network.op("Mul", x, name))
    proven(network.file(x), samples((2, 4, 8, 8)))


def test_a_file_that_is_quantized_already_stays_as_it_is() -> None:
    network, output = residual()
    given = samples((2, 3, 16, 16))
    written = write_onnx(quantize_onnx(read_onnx(network.file(output)), given).graph)
    again = quantize_onnx(read_onnx(written), given)
    assert not again.graph.weighted()
    assert {layer.reason for layer in again.placement.float_layers} == {"it is quantized already"}
    np.testing.assert_array_equal(run(written, given[0])[0], run(write_onnx(again.graph), given[0])[0])


def test_another_opset_than_that_of_kept_operators_is_refused() -> None:
    network = Network(["N", 4])
    graph = quantize_onnx(read_onnx(network.file(network.op("Exp", "x"))), samples((2, 4))).graph
    with pytest.raises(UsageError, match="Expected opset 17, that of the float operators"):
        write_onnx(graph, opset=20)
    assert onnx.load_model_from_string(write_onnx(graph, opset=17)).opset_import[0].version == 17
