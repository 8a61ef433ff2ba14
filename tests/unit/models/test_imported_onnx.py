"""Foreign ONNX files against onnxruntime: the module computes the same, and what cannot be kept is refused by name."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torchvision.models import get_model

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError, DataError, UsageError
from cpt_deploy.export import write_float_onnx, write_onnx
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.models import build_model
from cpt_deploy.models.imported import open_source
from cpt_deploy.models.imported.onnx_source import OnnxSource
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare

RANDOM = np.random.default_rng(7)


def array(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def onnx_file(
    path: Path,
    nodes: list[tuple[Any, ...]],
    constants: dict[str, np.ndarray],
    *,
    image: tuple[Any, ...] = ("N", 3, 8, 8),
    logits: tuple[Any, ...] = ("N", 5),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a file of nodes, each (operator, inputs, output, attributes); reads "x", makes "y"."""
    first = {operator: i for i, (operator, *_) in reversed(list(enumerate(nodes)))}
    made = [
        helper.make_node(
            operator,
            inputs.split(),
            outputs.split(),
            name=f"the_{operator}" + ("" if first[operator] == i else f"_{i}"),
            **attributes,
        )
        for i, (operator, inputs, outputs, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", kind, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, logits)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, path)
    return path


def run_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    session = open_session(path)
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def assert_same(path: Path, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The module gives onnxruntime's logits for a batch of 3, and `prepare` takes it."""
    module = open_source(path).build(shape, classes)
    x = RANDOM.normal(size=(3, *shape)).astype(np.float32)
    with torch.no_grad():
        got = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, run_onnxruntime(path, x), rtol=1e-3, atol=1e-4)
    prepare(module, torch.zeros(2, *shape), QuantizationConfig())
    return module


HEAD = [("Flatten", "h", "f", {}), ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1})]
"""From "h", (N, 4, 8, 8), to the logits."""
WEIGHTS = {
    "conv.weight": array(4, 3, 3, 3), "conv.bias": array(4), "fc.weight": array(5, 256) / 16, "fc.bias": array(5),
}  # fmt: skip
CONV = ("Conv", "x conv.weight conv.bias", "c", {"pads": [1, 1, 1, 1]})

MIDDLES: dict[str, tuple[list[tuple[Any, ...]], dict[str, np.ndarray], int]] = {
    "clip with attributes": ([("Clip", "c", "h", {"min": 0.0, "max": 6.0})], {}, 10),
    "clip with operands": ([("Clip", "c low high", "h", {})], {"low": np.float32(0), "high": np.float32(1)}, 17),
    "clip without max_bits": ([("Clip", "c low", "h", {})], {"low": np.float32(0)}, 17),
    "batch norm": (
        [("Relu", "c", "r", {}), ("BatchNormalization", "r s b m v", "h", {"epsilon": 1e-3})],
        {"s": array(4), "b": array(4), "m": array(4), "v": np.abs(array(4)) + 0.1},
        17,
    ),
    "batch norm after a convolution": (
        [("BatchNormalization", "c s b m v", "n", {}), ("Relu", "n", "h", {})],
        {"s": array(4), "b": array(4), "m": array(4), "v": np.abs(array(4)) + 0.1},
        13,
    ),
    "constants of channels": (
        [("Relu", "c", "r", {}), ("Mul", "r s", "m", {}), ("Sub", "b m", "n", {}), ("Relu", "n", "h", {})],
        {"s": array(1, 4, 1, 1), "b": array(4, 1, 1)},
        17,
    ),
    "a constant divisor": ([("Relu", "c", "r", {}), ("Div", "r six", "h", {})], {"six": np.float32(6)}, 17),
    "hard sigmoid of Keras": ([("HardSigmoid", "c", "s", {}), ("Mul", "c s", "h", {})], {}, 17),
    "hard sigmoid of PyTorch": (
        [("HardSigmoid", "c", "s", {"alpha": 1 / 6, "beta": 0.5}), ("Mul", "c s", "h", {})], {}, 17,
    ),
    "hard swish": ([("HardSwish", "c", "h", {})], {}, 17),
    "leaky": ([("LeakyRelu", "c", "l", {"alpha": 0.1}), ("Elu", "l", "e", {}), ("Tanh", "e", "h", {})], {}, 17),
    "dropout and identity": ([("Dropout", "c", "d", {}), ("Identity", "d", "h", {})], {}, 17),
    "a sum of three": ([("Relu", "c", "r", {}), ("Tanh", "c", "t", {}), ("Sum", "c r t", "h", {})], {}, 17),
    "split and concat": (
        [("Split", "c sizes", "a b", {"axis": 1}), ("Relu", "a", "r", {}), ("Concat", "r b", "h", {"axis": -3})],
        {"sizes": np.array([1, 3])},
        17,
    ),
    "channel shuffle": (
        [
            ("Reshape", "c to", "a", {}), ("Transpose", "a", "t", {"perm": [0, 2, 1, 3, 4]}),
            ("Reshape", "t back", "h", {}),
        ],
        {"to": np.array([0, 2, 2, 8, 8]), "back": np.array([-1, 4, 8, 8])},
        17,
    ),
    "pools": (
        [
            ("MaxPool", "c", "m", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
            ("AveragePool", "m", "h", {"kernel_shape": [1, 1]}),
        ],
        {},
        17,
    ),
    "squeeze and excite": (
        [
            ("ReduceMean", "c", "p", {"axes": [2, 3], "keepdims": 0}), ("Unsqueeze", "p axes", "u", {}),
            ("Conv", "u se.weight", "q", {}), ("Sigmoid", "q", "s", {}), ("Mul", "s c", "h", {}),
        ],
        {"axes": np.array([2, 3]), "se.weight": array(4, 4, 1, 1)},
        17,
    ),
    "global maximum": ([("GlobalMaxPool", "c", "g", {}), ("Add", "c g", "h", {})], {}, 17),
    "a shape that is computed": (
        [
            ("Shape", "c", "shape", {}), ("Gather", "shape zero", "n", {}), ("Unsqueeze", "n zero", "n1", {}),
            ("Concat", "n1 rest", "to", {"axis": 0}), ("Reshape", "c to", "v", {}), ("Reshape", "v back", "h", {}),
        ],
        {"zero": np.array([0]).reshape(()), "rest": np.array([4, 64]), "back": np.array([0, 0, 8, 8])},
        11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MIDDLES if name != "a shape that is computed"])
def test_operators_compute_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = MIDDLES[name]
    opset = 14 if name == "hard swish" else opset
    path = onnx_file(tmp_path / "net.onnx", [CONV, *nodes, *HEAD], WEIGHTS | constants, opset=opset)
    assert_same(path, (3, 8, 8), 5)


def test_arithmetic_on_shapes_is_computed_beforehand(tmp_path: Path) -> None:
    nodes, constants, _ = MIDDLES["a shape that is computed"]
    nodes = [(*node[:3], {"axes": [0]}) if node[0] == "Unsqueeze" else node for node in nodes]
    nodes = [("Unsqueeze", "n", "n1", {"axes": [0]}) if node[0] == "Unsqueeze" else node for node in nodes]
    path = onnx_file(tmp_path / "net.onnx", [CONV, *nodes, *HEAD], WEIGHTS | constants, opset=11)
    assert_same(path, (3, 8, 8), 5)


def test_a_free_size_and_a_fixed_batch_are_taken(tmp_path: Path) -> None:
    head = [("Relu", "c", "h", {}), ("GlobalAveragePool", "h", "p", {}), ("Flatten", "p", "f", {})]
    last = [("MatMul", "f w", "m", {}), ("Add", "m b", "y", {})]
    constants = WEIGHTS | {"w": array(4, 5), "b": array(5)}
    free = onnx_file(tmp_path / "free.onnx", [CONV, *head, *last], constants, image=("N", 3, "H", "W"))
    assert open_source(free).input_shape == (3, None, None)
    assert_same(free, (3, 12, 10), 5)
    fixed = onnx_file(tmp_path / "fixed.onnx", [CONV, *head, *last], constants, image=(2, 3, 8, 8), logits=(2, 5))
    module = open_source(fixed).build((3, 8, 8), 5)
    assert module(torch.zeros(7, 3, 8, 8)).shape == (7, 5)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_probabilities_at_the_end_are_left_out(kind: str, tmp_path: Path) -> None:
    nodes = [CONV, ("Relu", "c", "h", {}), HEAD[0], ("Gemm", "f fc.weight fc.bias", "z", {"transB": 1})]
    path = onnx_file(tmp_path / "net.onnx", [*nodes, (kind, "z", "y", {"axis": 1})], WEIGHTS)
    module = open_source(path).build((3, 8, 8), 5)
    x = RANDOM.normal(size=(3, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        logits = module(torch.from_numpy(x))
    expected = run_onnxruntime(path, x)
    got = logits.softmax(1) if kind == "Softmax" else logits.log_softmax(1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-5)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_padding_of_a_convolution_is_kept(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    kernel, strides = [data.draw(st.lists(st.integers(1, most), min_size=2, max_size=2)) for most in (4, 3)]
    attributes: dict[str, Any] = {"strides": strides, "group": groups}
    automatic = data.draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if automatic == "NOTSET":
        attributes["pads"] = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    else:
        attributes["auto_pad"] = automatic
    weight = array(8, 4 // groups, *kernel)
    nodes = [("Conv", "x w", "c", attributes), ("GlobalAveragePool", "c", "p", {}), ("Flatten", "p", "y", {})]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(o, i.split(), e.split(), **a) for o, i, e, a in nodes],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 9, 10])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    source = OnnxSource(model, "net", (4, 9, 10), 8, "net.onnx")
    source.build((4, 9, 10), 8)  # compares with onnxruntime itself, and raises


def exported(network: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(), (torch.zeros(2, *shape),), dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
        )  # fmt: skip
    assert program is not None
    program.save(path)
    return path


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_files_of_torchs_exporter_are_served_in_the_same_integers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exported(get_model(name, weights=None, num_classes=5), (3, 32, 32), tmp_path / "net.onnx")
    module = assert_same(path, (3, 32, 32), 5)
    model = prepare(module, torch.zeros(2, 3, 32, 32), QuantizationConfig())
    assert next(layer.name for layer in model.layers()) in {"conv1", "features.0.0"}
    calibrate(model, [torch.randn(4, 3, 32, 32)], statistics=False)
    graph = freeze(model)
    x = torch.randn(3, 3, 32, 32)
    (tmp_path / "int.onnx").write_bytes(write_onnx(graph))
    assert np.array_equal(run_onnxruntime(tmp_path / "int.onnx", x.numpy()), IntegerExecutor(graph)(x).numpy())


def test_a_run_s_own_float_export_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("tiny", num_classes=5, in_channels=1, input_size=(8, 8)).eval()
    path = tmp_path / "float.onnx"
    path.write_bytes(write_float_onnx(prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())))
    module = assert_same(path, (1, 8, 8), 5)
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(module(x), network(x), atol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([CONV, ("Erf", "c", "h", {}), *HEAD], {}, "operator Erf in node 'the_Erf'"),
        ([CONV, ("Clip", "c low", "h", {}), *HEAD], {}, "operator Clip in node 'the_Clip'"),
        ([CONV, ("Div", "one c", "h", {}), *HEAD], {}, "operator Div in node 'the_Div'"),
        ([CONV, ("ReduceMean", "c", "y", {"axes": [1, 2], "keepdims": 0})], {"logits": ("N", "K")}, "ReduceMean"),
        ([("Gather", "conv.bias x", "y", {})], {"image": ("N", 3), "kind": TensorProto.INT64}, "int64 (?, 3)"),
        ([("Relu", "x", "y", {})], {"logits": ("N", 3, 8, 8)}, "(?, 3, 8, 8)"),
        ([("Relu", "x", "y", {})], {"image": ("N", 8, 8, 3)}, "1 or 3 channels"),
        ([CONV, *HEAD], {"image": ("N", 3, 9, 8)}, "onnxruntime runs on images of 3 x 8 x 8"),
        ([CONV, ("Relu", "c", "h", {}), *HEAD], {"logits": ("N", 4)}, "5 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_name(
    nodes: list[Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    constants = WEIGHTS | {"low": np.float32(-1), "one": np.float32(1)}
    path = onnx_file(tmp_path / "net.onnx", nodes, constants, **options)
    with pytest.raises(ConversionError) as raised:
        open_source(path).build((3, 8, 8), 5)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_several_outputs_are_no_classifier(tmp_path: Path) -> None:
    model = onnx.load(onnx_file(tmp_path / "net.onnx", [CONV, ("Relu", "c", "h", {}), *HEAD], WEIGHTS))
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4, 8, 8]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ConversionError, match=r"one output, the logits, but net\.onnx has 2"):
        open_source(tmp_path / "net.onnx")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"cut"])
def test_damaged_files_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", [CONV, ("Relu", "c", "h", {}), *HEAD], WEIGHTS)
    path.write_bytes(path.read_bytes()[:2000] if content == b"cut" else content)
    with pytest.raises(DataError, match=r"Expected an ONNX model in .*net\.onnx"):
        open_source(path)


def test_a_quantized_file_is_told_from_a_float_one(tmp_path: Path) -> None:
    nodes = [CONV, ("QuantizeLinear", "c s z", "q", {}), ("DequantizeLinear", "q s z", "h", {}), *HEAD]
    constants = WEIGHTS | {"s": np.float32(0.1), "z": np.uint8(3)}
    with pytest.raises(ConversionError, match="QuantizeLinear") as raised:
        open_source(onnx_file(tmp_path / "net.onnx", nodes, constants)).build((3, 8, 8), 5)
    assert "quantized already" in str(raised.value.hint)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing"):
        open_source(tmp_path / "missing.onnx")
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"net\.h5"):
        open_source(tmp_path / "net.h5")
    path = onnx_file(tmp_path / "net.onnx", [CONV, ("Relu", "c", "h", {}), *HEAD], WEIGHTS)
    with pytest.raises(UsageError, match="--model with weights only"):
        open_source(path, "tiny")
