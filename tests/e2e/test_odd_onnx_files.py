"""ONNX files as others write them: exported, validated against the float file, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.onnx_graph.reading import read_onnx
from tests.unit.onnx_graph.reading.networks import Array, Network

ROWS = 7


def two_layers(shape: list[int | str | None], **options: int) -> tuple[Network, str]:
    network = Network(shape, **options)
    return network, network.conv(network.op("Relu", network.conv("x", 3, 8)), 8, 4)


def fixed_batch() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Three images a call; the data has seven, and five that are no whole call."""
    network, y = two_layers([3, 3, 8, 8])
    return network.model(y), images()


def real_bias_by_call() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A layer with a bias and a real result on three dimensions, in rows that depend on each other."""
    network = Network(["N", 5, 8])
    y = network.op("Add", network.op("MatMul", "x", network.weight(8, 6)), network.weight(6))
    y = network.op("Sub", y, network.op("ReduceMean", y, axes=[0]))
    return network.model(y), {"x": draw(ROWS, 5, 8)}


def shared_weights() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One matrix that five products read, as an unrolled recurrent layer has it."""
    network = Network(["N", 64])
    weight, x = network.constant(network.weight(64, 64)), "x"
    for _ in range(5):
        x = network.op("Tanh", network.op("MatMul", x, weight))
    return network.model(x), {"x": draw(ROWS, 64)}


def shared_weights_in_opset_13() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Convolutions of the same weights, in a file without products of int8."""
    network, x = Network(["N", 4, 8, 8], opset=13), "x"
    weight = network.constant(network.weight(4, 4, 3, 3))
    for _ in range(3):
        x = network.op("Relu", network.op("Conv", x, weight, pads=[1] * 4))
    return network.model(x), {"x": draw(ROWS, 4, 8, 8)}


def unsorted() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Operators from the last to the first."""
    network, y = two_layers(["N", 3, 8, 8])
    model = network.model(y)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, images()


def undeclared_output() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """An output behind an operator of onnxruntime, whose shape onnx does not know."""
    network, y = two_layers(["N", 3, 8, 8])
    network.nodes.append(helper.make_node("Gelu", [y], ["gelu"], domain="com.microsoft"))
    z = network.conv("gelu", 4, 2)
    network.nodes.append(helper.make_node("Gelu", [z], ["end"], domain="com.microsoft"))
    model = network.model("end")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model, images()


def wrongly_declared_output() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """An output of four dimensions that is declared with two."""
    network, y = two_layers(["N", 3, 8, 8])
    model = network.model(y)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, "length"]))
    return model, images()


def number_as_input() -> tuple[onnx.ModelProto, dict[str, Array]]:
    network, y = two_layers(["N", 3, 8, 8])
    network.inputs.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, []))
    return network.model(network.op("Mul", y, "t")), images(1) | {"t": draw(ROWS)}


def number_as_output() -> tuple[onnx.ModelProto, dict[str, Array]]:
    network, y = two_layers(["N", 3, 8, 8])
    return network.model(network.op("ReduceMean", y, keepdims=0)), images()


def sequence_inside() -> tuple[onnx.ModelProto, dict[str, Array]]:
    network, y = two_layers(["N", 3, 8, 8])
    parts = network.op("SplitToSequence", y, axis=1)
    return network.model(network.conv(network.op("ConcatFromSequence", parts, axis=1), 4, 2)), images()


def not_finite_output() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One output is NaN, the other is judged."""
    network, y = two_layers(["N", 3, 8, 8])
    nothing = network.op("Log", network.op("Sub", network.op("Neg", network.op("Abs", "x")), np.array(1, np.float32)))
    return network.model(network.op("Exp", y), nothing), images()


def draw(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def images(rows_of_a_call: int = 0) -> dict[str, Array]:
    return {"x": draw(ROWS, 1, 3, 8, 8)} if rows_of_a_call else {"x": draw(ROWS, 3, 8, 8)}


@pytest.mark.parametrize(
    "made",
    [
        fixed_batch, real_bias_by_call, shared_weights, shared_weights_in_opset_13, unsorted, undeclared_output,
        wrongly_declared_output, number_as_input, number_as_output, sequence_inside, not_finite_output,
    ],
)  # fmt: skip
def test_it_is_exported_validated_and_inspected(
    made: Callable[[], tuple[onnx.ModelProto, dict[str, Array]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, arrays = made()
    file, data, bundle = tmp_path / "model.onnx", tmp_path / "inputs.npz", tmp_path / "bundle"
    file.write_bytes(model.SerializeToString())
    np.savez(data, allow_pickle=False, **arrays)
    assert main(["export", "--from", str(file), "--data", str(data), "--out", str(bundle)]) == 0, capsys.readouterr()
    code = main(["validate", str(bundle), "--data", str(data), "--from", str(file)])
    said = capsys.readouterr()
    if made is not_finite_output:
        assert code == 4
        assert "onnxruntime returned outputs that are not finite" in said.err
    else:
        assert code == 0, said
    assert main(["inspect", str(file)]) == 0, capsys.readouterr()
    opened = Bundle.open(bundle)
    assert OnnxRuntimeModel(opened.onnx_path, opened.signature).reproduce_golden(opened.golden).reproduced


def test_weights_that_layers_share_are_stored_once(tmp_path: Path) -> None:
    model, arrays = shared_weights()
    file, data, bundle = tmp_path / "model.onnx", tmp_path / "inputs.npz", tmp_path / "bundle"
    file.write_bytes(model.SerializeToString())
    np.savez(data, allow_pickle=False, **arrays)
    assert main(["export", "--from", str(file), "--data", str(data), "--out", str(bundle)]) == 0
    assert (bundle / "model.onnx").stat().st_size < file.stat().st_size
    weights = [array for array in Bundle.open(bundle).load_tensors().values() if array.shape == (64, 64)]
    assert len(weights) == 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    plain = onnxruntime.InferenceSession(bundle / "model.onnx", options).run(None, arrays)
    options.add_session_config_entry("session.x64quantprecision", "1")  # converts weights, each of one layer
    exact = onnxruntime.InferenceSession(bundle / "model.onnx", options).run(None, arrays)
    np.testing.assert_array_equal(plain[0], exact[0])


def drawing() -> onnx.ModelProto:
    network, y = two_layers(["N", 3, 8, 8])
    return network.model(network.op("Add", y, network.op("RandomNormalLike", y)))


def without_inputs() -> onnx.ModelProto:
    network = Network(["N", 3])
    network.inputs = []
    return network.model(network.op("RandomNormal", shape=[2, 3]))


def of_nothing_but_nan() -> onnx.ModelProto:
    network, y = two_layers(["N", 3, 8, 8])
    return network.model(
        network.op("Log", network.op("Sub", network.op("Neg", network.op("Abs", y)), np.array(1, np.float32)))
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (drawing, "changes between calls"),
        (without_inputs, "Expected a model with inputs in model.onnx, but it has none"),
        (of_nothing_but_nan, "not finite"),
    ],
)
def test_it_is_refused_in_one_line(
    made: Callable[[], onnx.ModelProto], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data, bundle = tmp_path / "model.onnx", tmp_path / "inputs.npz", tmp_path / "bundle"
    file.write_bytes(made().SerializeToString())
    np.savez(data, allow_pickle=False, **images())
    assert main(["export", "--from", str(file), "--data", str(data), "--out", str(bundle)]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert "unexpected" not in error
    assert not bundle.exists()


def test_what_runs_on_integers_counts_operators_of_onnxruntime() -> None:
    """A product that is left in float has its share, whatever its domain is."""
    from cpt_deploy.onnx_graph.quantizing import quantize_onnx

    network = Network(["N", 4, 8])
    x = network.op("MatMul", "x", network.weight(8, 8))
    network.nodes.append(
        helper.make_node("FusedMatMul", [x, network.constant(network.weight(8, 8))], ["y"], domain="com.microsoft")
    )
    model = network.model("y")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8]))
    placement = quantize_onnx(read_onnx(model.SerializeToString()), [{"x": draw(2, 4, 8)}]).placement
    assert placement.integer_share == 0.5
    assert [layer.operator for layer in placement.float_layers] == ["FusedMatMul"]
