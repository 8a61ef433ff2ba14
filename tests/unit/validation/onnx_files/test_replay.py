"""Files of onnxruntime's quantizer, integer by integer; and differences that are put into them."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from cpt_deploy.bundle.runtime.sessions import may_saturate, open_session
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.validation.onnx_files.files import batches, example_inputs, read_file
from cpt_deploy.validation.onnx_files.replay import Replay
from cpt_deploy.validation.onnx_files.unoptimized import Unoptimized
from cpt_deploy.validation.onnx_files.validation import validate_file
from tests.unit.validation.onnx_files.conftest import constant, images, model_of, value


def replayed(path, inputs):
    file = read_file(path)
    session = open_session(file.content)
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
    replay = Replay(file.optimized())
    replay.add(inputs, outputs)
    return replay.result()


@pytest.mark.parametrize("name", ["qdq", "operators", "unsigned", "signed", "reduced", "dynamic"])
def test_every_integer_of_a_quantized_file_is_exact(name, files):
    result = replayed(files[name], {"image": images(5)})
    assert result.reproduced
    assert not result.unknown
    assert result.mismatches == 0
    assert result.compared >= 5 * 3 * 8 * 8  # the quantized input alone


def test_another_weight_in_the_graph_is_found_where_it_is_and_nowhere_else(files):
    file = read_file(files["reduced"])
    network, inputs = file.optimized(), {"image": images(4)}
    replay = Replay(network)
    conv = next(node for node in network.nodes if node.op_type == "QLinearConv" and "conv1" in node.name)
    changed = network.array(conv.input[3]).copy()
    changed.flat[0] += 9
    replay.network = replace(
        network, constants={**network.constants, conv.input[3]: numpy_helper.from_array(changed, conv.input[3])}
    )
    replay.add(inputs, {})
    result = replay.result()
    assert [entry.name for entry in result.operators if entry.mismatches] == [conv.name]
    assert 0 < result.mismatches < result.compared


def test_other_served_outputs_are_noticed(files):
    file = read_file(files["reduced"])
    replay = Replay(file.optimized())
    replay.add({"image": images(2)}, {"y": np.zeros((2, 4), np.float32)})
    assert not replay.result().reproduced


def test_float_operators_separate_stretches(tmp_path):
    nodes = []
    for name, source in (("a", "x"), ("b", "a_float")):
        nodes += [
            helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{name}_q"], f"{name}_quantize"),
            helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_r"], f"{name}_dequantize"),
            helper.make_node("Sin", [f"{name}_r"], [f"{name}_float"], f"{name}_sin"),
        ]
    constants = [constant("s", 0.02), constant("z", 128, np.uint8)]
    model = model_of(nodes, [value("x", ["N", 7])], [value("b_float", ["N", 7])], constants)
    onnx.save(model, tmp_path / "file.onnx")
    result = replayed(
        tmp_path / "file.onnx", {"x": np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)}
    )
    assert result.stretches == 2
    assert result.mismatches == 0


def test_operators_without_known_arithmetic_are_named(tmp_path):
    node = helper.make_node(
        "QLinearSoftmax", ["x", "s", "z", "t", "z"], ["y"], "soft", domain="com.microsoft", opset=13
    )
    constants = [constant("s", 0.05), constant("z", 0, np.uint8), constant("t", 1 / 256)]
    kind = onnx.TensorProto.UINT8
    model = model_of([node], [value("x", ["N", 8], kind)], [value("y", ["N", 8], kind)], constants)
    onnx.save(model, tmp_path / "file.onnx")
    result = replayed(tmp_path / "file.onnx", {"x": np.arange(16, dtype=np.uint8).reshape(2, 8)})
    assert result.unknown == {"QLinearSoftmax": 1}
    assert result.compared == 0


def test_forms_without_known_arithmetic_are_named_with_the_reason(tmp_path):
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "blocks", axis=0, block_size=2)
    constants = [constant("s", np.full((2, 4), 0.1)), constant("z", np.zeros((2, 4)), np.uint8)]
    model = model_of([node], [value("x", [4, 4])], [value("y", [4, 4], onnx.TensorProto.UINT8)], constants, opset=21)
    model.ir_version = 10
    onnx.save(model, tmp_path / "file.onnx")
    result = replayed(tmp_path / "file.onnx", {"x": np.ones((4, 4), np.float32)})
    assert result.unknown == {"QuantizeLinear (scales per block)": 1}
    assert result.compared == 0


def test_integers_with_optimizations_off_are_those_of_another_session(files):
    """The counts are those of two plain sessions, one of them without optimizations."""
    file, inputs = read_file(files["qdq"]), {"image": images(8)}
    compared = Unoptimized(file)
    plain = compared.add(inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(files["qdq"], options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["y"], inputs)[0], plain["y"])
    tensors = {tensor.name: tensor for tensor in compared.results()}
    assert tensors["image_QuantizeLinear_Output"].mismatches == 0
    assert tensors["image_QuantizeLinear_Output"].values == inputs["image"].size
    assert len(tensors) >= 6


def test_a_report_measures_agreement_accuracy_and_latency(files, source):
    labels = open_session(source).run(None, {"image": images(20)})[0].argmax(axis=1)
    data = {"image": images(20), "labels": labels}
    report = validate_file(read_file(files["qdq"]), data, data_name="inputs.npz", source=read_file(source))
    assert report.passed
    assert report.rows == 20
    assert report.source_accuracy.successes == 20
    assert report.accuracy.trials == 20
    (output,) = report.agreement
    wanted, got = (open_session(path).run(None, {"image": images(20)})[0] for path in (source, files["qdq"]))
    noise = ((wanted - got).astype(np.float64) ** 2).sum()
    assert output.sqnr_db == pytest.approx(10 * np.log10((wanted.astype(np.float64) ** 2).sum() / noise), rel=1e-3)
    assert output.top1 == (wanted.argmax(axis=1) == got.argmax(axis=1)).mean()
    assert report.latency.rounds >= 10
    assert (report.default_kernels is not None) == may_saturate()


def test_a_file_without_integers_is_refused(source):
    with pytest.raises(UsageError, match="is computed on integers"):
        validate_file(read_file(source), {"image": images(2)})


def test_a_file_of_which_no_integer_can_be_compared_fails(tmp_path):
    """The exact arithmetic of onnxruntime's dynamically quantized LSTM is not known."""
    random = np.random.default_rng(0)
    weights = [constant(name, random.standard_normal((1, 16, size))) for name, size in (("W", 6), ("R", 4))]
    lstm = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=4)
    onnx.save(model_of([lstm], [value("x", ["t", "N", 6])], [value("y")], weights), tmp_path / "lstm.onnx")
    quantize_dynamic(tmp_path / "lstm.onnx", tmp_path / "quantized.onnx")
    report = validate_file(read_file(tmp_path / "quantized.onnx"))
    assert report.served.compared == 0
    assert report.reasons == ("no integers were compared",)


def test_data_of_another_model_are_refused(files):
    with pytest.raises(UsageError, match="Expected arrays image, but got picture"):
        validate_file(read_file(files["qdq"]), {"picture": images(2)})


@pytest.mark.parametrize("labels", [np.zeros(1, np.int64), np.zeros((2, 1), np.int64)])
def test_labels_are_one_for_each_row(files, labels):
    with pytest.raises(UsageError, match=r"labels of shape \(2,\)"):
        validate_file(read_file(files["qdq"]), {"image": images(2), "labels": labels})


def test_labels_are_numbers_of_classes(files):
    with pytest.raises(UsageError, match="numbers of classes, but got <U3"):
        validate_file(read_file(files["qdq"]), {"image": images(2), "labels": np.array(["cat", "dog"])})


def test_outputs_that_are_no_tensors_are_left_out_and_those_of_other_rows_have_no_labels(files, tmp_path):
    model = onnx.load(files["qdq"])
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["y", "y"], ["both"], "both"))
    model.graph.output.append(onnx.helper.make_tensor_sequence_value_info("both", onnx.TensorProto.FLOAT, ["N", 4]))
    onnx.save(model, tmp_path / "sequence.onnx")
    assert validate_file(read_file(tmp_path / "sequence.onnx"), {"image": images(2)}).passed
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Concat", ["y", "y"], ["both"], "both", axis=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("both", onnx.TensorProto.FLOAT, ["M", 4]))
    onnx.save(model, tmp_path / "twice.onnx")
    with pytest.raises(UsageError, match="a row for each of 2 labels, but got 4 rows"):
        validate_file(read_file(tmp_path / "twice.onnx"), {"image": images(2), "labels": np.zeros(2, np.int64)})


def test_rows_of_a_fixed_batch_are_grouped(files, tmp_path):
    model = onnx.load(files["reduced"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "three.onnx")
    file = read_file(tmp_path / "three.onnx")
    assert [len(call["image"]) for call in batches(file, {"image": images(8)})] == [3, 3]


def test_random_inputs_use_the_range_of_their_quantizer(files):
    (codes,) = (
        Replay(file.optimized()).run(example_inputs(file, 8))["image_QuantizeLinear_Output"]
        for file in (read_file(files["reduced"]),)
    )
    assert codes.min() < 20
    assert codes.max() > 235


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "file.onnx").write_bytes(b"nothing")
    with pytest.raises(DataError, match="Expected an ONNX model"):
        read_file(tmp_path / "file.onnx")


def test_weights_that_share_zero_points_can_have_exact_kernels(files, tmp_path, monkeypatch):
    """onnxruntime itself refuses to convert such weights on x86."""
    model = onnx.load(files["qdq"])
    first, second = (next(n for n in model.graph.node if n.input[0] == f"w{i}_quantized") for i in (1, 2))
    second.input[2] = first.input[2]
    onnx.save(model, tmp_path / "shared.onnx")
    monkeypatch.setattr("cpt_deploy.bundle.runtime.sessions.may_saturate", lambda: True)
    inputs = {"image": images(3)}
    shared, own = (open_session(path).run(None, inputs)[0] for path in (tmp_path / "shared.onnx", files["qdq"]))
    np.testing.assert_array_equal(shared, own)
    assert replayed(tmp_path / "shared.onnx", inputs).mismatches == 0
