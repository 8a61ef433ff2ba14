"""Each finding appears in a file with its trap planted, and not in the file without it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.validation.onnx_files.files import read_file
from cpt_deploy.validation.onnx_files.inspection import Inspection, inspect_file
from cpt_deploy.validation.onnx_files.validation import validate_file
from tests.unit.validation.onnx_files.conftest import constant, images, model_of, quantize, value

Trap = Callable[[onnx.ModelProto], None]


def inspected(path: Path) -> Inspection:
    return inspect_file(read_file(path))


def rules(inspection: Inspection) -> set[str]:
    return {finding.rule for finding in inspection.findings}


def node_of(model: onnx.ModelProto, kind: str, tensor: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind and tensor in (*n.input, *n.output))


def replace_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def array_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(entry for entry in model.graph.initializer if entry.name == name))


def dequantizer(model: onnx.ModelProto, ends: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(ends))


def vector_scales(model):
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            for name in node.input[1:]:
                replace_constant(model, name, array_of(model, name).reshape(1))


def no_zero_point(model):
    del dequantizer(model, "w3_quantized").input[2]


def float_clip(model):
    clip = helper.make_node("Clip", ["sum_real", "low", "high"], ["sum"], "clip")
    model.graph.initializer.extend([constant("low", 0.0), constant("high", 0.5)])
    add = node_of(model, "Add", "sum")
    add.output[0] = "sum_real"
    model.graph.node.insert(list(model.graph.node).index(add) + 1, clip)


def moved_zero_point(model):
    node = node_of(model, "QuantizeLinear", "sum")
    relu = helper.make_node("Relu", ["sum_real"], ["sum"], "relu_of_sum")
    add = node_of(model, "Add", "sum")
    add.output[0] = "sum_real"
    model.graph.node.insert(list(model.graph.node).index(add) + 1, relu)
    assert array_of(model, node.input[2]) > 0


def other_axis(model, weight="w1_quantized", channels=3):
    node = dequantizer(model, weight)
    next(a for a in node.attribute if a.name == "axis").i = 1
    for name in node.input[1:]:
        replace_constant(model, name, array_of(model, name)[:channels])


def axis_of_equal_size(model):
    other_axis(model, "w2_quantized", 8)


def float_bias(model):
    node = node_of(model, "Conv", "c2")
    node.input[2] = "bias"
    model.graph.initializer.append(constant("bias", np.ones(8)))


def bias_scale(model):
    name = dequantizer(model, "b2_quantized").input[1]
    replace_constant(model, name, array_of(model, name) * np.float32(2))


def float_weight(model):
    node = node_of(model, "Conv", "c2")
    node.input[1] = "weight"
    model.graph.initializer.append(constant("weight", np.ones((8, 8, 3, 3))))


def weight_zero_point(model):
    name = dequantizer(model, "w2_quantized").input[2]
    replace_constant(model, name, array_of(model, name) + np.int8(1))


def sixteen_bits(model):
    model.opset_import[0].version = 21
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] == "sum":
            replace_constant(model, node.input[2], np.array(0, np.uint16))


def packed_weights(model):
    model.opset_import[0].version = 21
    node = dequantizer(model, "w3_quantized")
    packed = helper.make_tensor(node.input[0], TensorProto.INT4, [4, 8], [1, -2, 3, 0] * 8)
    next(t for t in model.graph.initializer if t.name == node.input[0]).CopyFrom(packed)
    zeros = helper.make_tensor(node.input[2], TensorProto.INT4, [4], [0] * 4)
    next(t for t in model.graph.initializer if t.name == node.input[2]).CopyFrom(zeros)


def half_quantized(model):
    add = node_of(model, "Add", "sum")
    source = node_of(model, "DequantizeLinear", add.input[1]).input[0]
    add.input[1] = node_of(model, "QuantizeLinear", source).input[0]


def no_integer_form(model):
    pool = node_of(model, "GlobalAveragePool", "mean")
    mean = helper.make_node("ReduceMean", list(pool.input), list(pool.output), "mean_node", axes=[2, 3])
    model.graph.node.insert(list(model.graph.node).index(pool), mean)
    model.graph.node.remove(pool)


def own_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and "sum" in node.name:
            node.domain = "com.microsoft"


def full_weights(model):
    replace_constant(model, "w2_quantized", np.full((8, 8, 3, 3), 127, np.int8))


TRAPS: dict[str, Trap] = {
    "scale-shape": vector_scales,
    "zero-point": no_zero_point,
    "clip": float_clip,
    "relu": moved_zero_point,
    "weight-axis": other_axis,
    "ignored-axis": axis_of_equal_size,
    "float-bias": float_bias,
    "bias-scale": bias_scale,
    "float-weight": float_weight,
    "weight-zero-point": weight_zero_point,
    "sixteen-bit": sixteen_bits,
    "packed-weights": packed_weights,
    "half-quantized": half_quantized,
    "no-integer-form": no_integer_form,
    "domain": own_domain,
    "saturation": full_weights,
}


def test_nothing_is_found_in_a_file_that_fuses(files):
    inspection = inspected(files["reduced"])
    assert not inspection.findings
    assert not inspection.in_float
    assert inspection.integer_share == 1
    assert inspection.portable


@pytest.mark.parametrize("rule", TRAPS)
def test_a_planted_trap_is_found(rule, files, tmp_path):
    model = onnx.load(files["reduced"])
    TRAPS[rule](model)
    onnx.save(model, tmp_path / "trap.onnx")
    inspection = inspected(tmp_path / "trap.onnx")
    assert rule in rules(inspection)
    finding = next(each for each in inspection.findings if each.rule == rule)
    assert finding.where
    assert finding.change


@pytest.mark.parametrize("rule", ["zero-point", "clip", "weight-axis", "bias-scale", "half-quantized"])
def test_a_trap_that_costs_a_kernel_leaves_float_operators(rule, files, tmp_path):
    model = onnx.load(files["reduced"])
    TRAPS[rule](model)
    onnx.save(model, tmp_path / "trap.onnx")
    assert inspected(tmp_path / "trap.onnx").in_float


def test_an_ignored_axis_fails_the_file_since_its_results_are_wrong(files, tmp_path):
    model = onnx.load(files["reduced"])
    axis_of_equal_size(model)
    onnx.save(model, tmp_path / "trap.onnx")
    fused, plain = (
        open_session(tmp_path / "trap.onnx", optimize=optimize).run(None, {"image": images(4)})[0]
        for optimize in (True, False)
    )
    assert np.abs(fused - plain).max() > 0.05 * np.abs(plain).max()
    report = validate_file(read_file(tmp_path / "trap.onnx"), {"image": images(4)})
    assert report.served.mismatches == 0
    assert not report.passed
    assert "ignores the axis" in report.reasons[0]


def test_int8_activations_are_found(files):
    inspection = inspected(files["signed"])
    assert "int8-activations" in rules(inspection)
    assert inspection.integer_share < 0.5


def test_dynamic_quantization_is_found(files):
    assert "dynamic" in rules(inspected(files["dynamic"]))


def test_layers_without_quantizers_are_found(source):
    inspection = inspected(source)
    found = next(each for each in inspection.findings if each.rule == "unquantized")
    assert set(found.where) == {"conv1", "conv2", "gemm"}
    assert inspection.integer_share == 0
    assert not inspection.quantized


def test_uint8_weights_do_not_saturate(files):
    assert inspected(files["unsigned"]).portable
    assert not inspected(files["qdq"]).portable


def product(
    path: Path, weights: onnx.TensorProto | None, kind: int = TensorProto.INT8, *, inside: bool = False
) -> Path:
    """Write a file with a MatMulInteger of (1, 8) and (8, 4), whose second factor is an input without weights."""
    inputs, made = [value("a", [1, 8], TensorProto.UINT8)], value("y", [1, 4], TensorProto.INT32)
    inputs += [value("b", [8, 4], kind)] if weights is None else []
    nodes = [helper.make_node("MatMulInteger", ["a", "b"], ["y"], "product")]
    if inside:
        bodies = {
            key: helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], [key])], key, [],
                                   [value(key, [1, 4], TensorProto.INT32)])
            for key in ("then_branch", "else_branch")
        }  # fmt: skip
        nodes = [helper.make_node("If", ["condition"], ["y"], **bodies)]
        inputs.append(value("condition", [], TensorProto.BOOL))
    onnx.save(model_of(nodes, inputs, [made], [] if weights is None else [weights]), path)
    return path


def test_portable_is_unknown_where_weights_are_computed_or_inside_of_branches(tmp_path):
    weights = constant("b", np.full((8, 4), 127), np.int8)
    assert inspected(product(tmp_path / "a.onnx", weights)).portable is False
    inside = inspected(product(tmp_path / "b.onnx", weights, inside=True))
    assert inside.portable is None
    assert inside.quantized
    assert inspected(product(tmp_path / "c.onnx", None)).portable is None
    assert inspected(product(tmp_path / "d.onnx", None, TensorProto.UINT8)).portable is True


@pytest.mark.parametrize(("code", "portable"), [(127, False), (63, True)])
def test_weights_of_a_dynamically_quantized_lstm_are_examined(code, portable, tmp_path):
    weights = [constant(name, np.full((1, 4, 16), code), np.int8) for name in ("w", "r")]
    zeros = [constant(name, np.zeros(1), np.int8) for name in ("zw", "zr")]
    scales = [constant(name, np.full(1, 0.01)) for name in ("sw", "sr")]
    names = ["x", "w", "r", "", "", "", "", "", "sw", "zw", "sr", "zr"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["y"], "lstm", domain="com.microsoft", hidden_size=4)
    model = model_of([node], [value("x", [3, 1, 4])], [value("y", [3, 1, 1, 4])], [*weights, *zeros, *scales])
    onnx.save(model, tmp_path / "lstm.onnx")
    inspection = inspected(tmp_path / "lstm.onnx")
    assert inspection.portable is portable
    assert inspection.layers[0].worst_pair == 2 * 255 * code


def test_all_products_count_as_work(tmp_path):
    nodes = [
        helper.make_node("Einsum", ["q", "k"], ["e"], "einsum", equation="bhsd,bhtd->bhst"),
        helper.make_node("Attention", ["q", "k", "v"], ["a"], "attention"),
        helper.make_node("Einsum", ["q", "k", "v"], ["t"], "three", equation="bhsd,bhtd,bhte->bhse"),
    ]
    inputs = [value("q", [2, 3, 5, 8]), value("k", [2, 3, 7, 8]), value("v", [2, 3, 7, 4])]
    outputs = [value("e", [2, 3, 5, 7]), value("a", [2, 3, 5, 4]), value("t", [2, 3, 5, 4])]
    onnx.save(model_of(nodes, inputs, outputs, opset=23), tmp_path / "products.onnx")
    inspection = inspected(tmp_path / "products.onnx")
    macs = {layer.name: layer.macs for layer in inspection.layers}
    assert macs == {"einsum": 2 * 3 * 5 * 7 * 8, "attention": 2 * 3 * 5 * 7 * (8 + 4), "three": None}
    assert inspection.integer_share is None


def test_the_size_is_that_of_the_file_and_a_shape_that_is_not_stated_is_unknown(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    onnx.save(model_of(nodes, [value("x"), value("scalar", [])], [value("z")]), tmp_path / "m.onnx")
    inspection = inspected(tmp_path / "m.onnx")
    assert inspection.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert [facts.shape for facts in inspection.inputs] == [None, ()]


def test_work_is_counted_as_by_hand(files):
    layers = {layer.name: layer.macs for layer in inspected(files["reduced"]).layers}
    assert layers == {"conv1": 8 * 64 * 3 * 9, "conv2": 8 * 64 * 8 * 9, "gemm": 4 * 8}


def test_sums_beyond_int32_are_found(tmp_path):
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"], "product")
    weights = constant("b", np.full((70_000, 1), 127), np.int8)
    model = model_of(
        [node], [value("a", [1, 70_000], TensorProto.UINT8)], [value("y", [1, 1], TensorProto.INT32)], [weights]
    )
    onnx.save(model, tmp_path / "long.onnx")
    inspection = inspected(tmp_path / "long.onnx")
    assert "overflow" in rules(inspection)
    assert inspection.layers[0].worst_sum >= 255 * 127 * 70_000


def test_an_opset_without_scales_per_channel_is_found(source, tmp_path):
    model = onnx.load(source)
    model.opset_import[0].version = 12
    onnx.save(model, tmp_path / "old.onnx")
    quantize(tmp_path / "old.onnx", tmp_path / "quantized.onnx", per_channel=False)
    assert "opset" in rules(inspected(tmp_path / "quantized.onnx"))
