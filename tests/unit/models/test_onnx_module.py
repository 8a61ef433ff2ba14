"""ONNX files as PyTorch modules: they compute what onnxruntime computes of the file, and can be prepared."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError, CptError, DataError
from cpt_deploy.models import build_model
from cpt_deploy.models.onnx_layers import LAYERS
from cpt_deploy.models.onnx_module import build_onnx, digest_of
from cpt_deploy.onnx_graph.reading.network import attributes_of
from cpt_deploy.quantization import QuantizationConfig, prepare
from tests.unit.onnx_graph.reading.torch_files import CLASSES, SIZE, written

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
    """The module gives onnxruntime's logits for a batch of 3, and learns."""
    module = build_model(f"onnx:{path}", num_classes=classes, in_channels=shape[0], input_size=shape[1:])
    x = RANDOM.normal(size=(3, *shape)).astype(np.float32)
    with torch.no_grad():
        got = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, run_onnxruntime(path, x), rtol=1e-3, atol=1e-4)
    module(torch.from_numpy(x)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
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
    "clip without an upper bound": ([("Clip", "c low", "h", {})], {"low": np.float32(0)}, 17),
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
    "hard swish": ([("HardSwish", "c", "h", {})], {}, 14),
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
    "attention": (
        [
            ("Reshape", "c to", "r", {}), ("Transpose", "r", "t", {"perm": [0, 2, 1]}),
            ("LayerNormalization", "t ln.weight ln.bias", "n", {"axis": -1}),
            ("Transpose", "n", "k", {"perm": [0, 2, 1]}),
            ("MatMul", "n k", "s", {}), ("Div", "s two", "d", {}), ("Softmax", "d", "p", {"axis": -1}),
            ("MatMul", "p n", "a", {}), ("Transpose", "a", "b", {"perm": [0, 2, 1]}), ("Reshape", "b back", "h", {}),
        ],
        {
            "to": np.array([0, 4, 64]), "back": np.array([0, 4, 8, 8]), "ln.weight": np.abs(array(4)),
            "ln.bias": array(4), "two": np.float32(2),
        },
        17,
    ),
    "padding of two axes": (
        [
            ("Pad", "c pads zero axes", "p", {}), ("Relu", "p", "r", {}),
            ("Pad", "r less zero sides", "q", {"mode": "edge"}), ("Slice", "q one nine both", "h", {}),
        ],
        {
            "pads": np.array([1, 1, 1, 1]), "zero": np.float32(0.5), "axes": np.array([-1, 2]),
            "less": np.array([1, 0, 0, 0]), "sides": np.array([3, 2]), "one": np.array([1, 1]),
            "nine": np.array([9, 9]), "both": np.array([2, 3]),
        },
        18,
    ),
    "padding that wraps": (
        [("Pad", "c pads", "p", {"mode": "wrap"}), ("Slice", "p zero eight axes", "h", {})],
        {
            "pads": np.array([0, 0, 2, 1, 0, 0, 1, 2]), "zero": np.array([0, 0]), "eight": np.array([8, 8]),
            "axes": np.array([2, 3]),
        },
        19,
    ),
    "rows chosen by a table": (
        [("Gather", "c table", "g", {"axis": 1}), ("ReduceMean", "g", "h", {"axes": [1], "keepdims": 0})],
        {"table": np.array([[0, 1, 2, -1], [3, -2, 0, 0]])},
        17,
    ),
    "global maximum": ([("GlobalMaxPool", "c", "g", {}), ("Add", "c g", "h", {})], {}, 17),
    "a shape that is computed": (
        [
            ("Shape", "c", "shape", {}), ("Gather", "shape zero", "n", {}), ("Unsqueeze", "n", "n1", {"axes": [0]}),
            ("Concat", "n1 rest", "to", {"axis": 0}), ("Reshape", "c to", "v", {}), ("Reshape", "v back", "h", {}),
        ],
        {"zero": np.array([0]).reshape(()), "rest": np.array([4, 64]), "back": np.array([0, 0, 8, 8])},
        11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIDDLES)
def test_operators_compute_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = MIDDLES[name]
    path = onnx_file(tmp_path / "net.onnx", [CONV, *nodes, *HEAD], WEIGHTS | constants, opset=opset)
    assert_same(path, (3, 8, 8), 5)


@pytest.mark.parametrize("name", ["channel shuffle", "squeeze and excite", "attention"])
def test_a_module_is_prepared_and_computes_any_batch(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = MIDDLES[name]
    path = onnx_file(tmp_path / "net.onnx", [CONV, *nodes, *HEAD], WEIGHTS | constants, opset=opset)
    model = prepare(assert_same(path, (3, 8, 8), 5), torch.zeros(2, 3, 8, 8), QuantizationConfig())
    assert {layer.name for layer in model.layers()} >= {"conv", "fc"}
    assert model.conversion.path == ("float parts" if name == "attention" else "integers")


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_padding_of_a_convolution_is_kept(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    kernel, strides = [data.draw(st.lists(st.integers(1, most), min_size=2, max_size=2)) for most in (4, 3)]
    attributes: dict[str, Any] = {"strides": strides, "group": groups}
    automatic = data.draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if automatic == "NOTSET":
        attributes["pads"] = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    else:
        attributes["auto_pad"] = automatic
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    weight, x = array(8, 4 // groups, *kernel), array(2, 4, 9, 10)
    layer = LAYERS["Conv"]([None, weight], attributes_of(node), x.shape)
    assert layer is not None
    (expected,) = ReferenceEvaluator(node).run(None, {"x": x, "w": weight})
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_a_head_for_other_classes_is_new(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", [CONV, ("Relu", "c", "h", {}), *HEAD], WEIGHTS)
    kept = assert_same(path, (3, 8, 8), 5)
    other = build_model(f"onnx:{path}", num_classes=7, in_channels=3, input_size=(8, 8))
    assert torch.equal(other.get_parameter("conv.weight"), kept.get_parameter("conv.weight"))
    assert other.get_parameter("fc.weight").shape == (7, 256)


CONSTANTS = {
    "axis": np.array([1]), "five": np.array([5]), "pads": np.array([0, 1, 0, 0] * 2), "rows": np.array([-1, 4, 64]),
    "back": np.array([-1, 4, 1, 1]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([CONV, ("CumSum", "c axis", "h", {}), *HEAD], {}, "CumSum in node 'the_CumSum'"),
        ([CONV, ("Relu", "c", "h", {}), *HEAD], {"image": ("N", 3, 9, 8)}, "the height that net.onnx is made for, 9"),
        (
            [CONV, ("Pad", "c pads", "p", {"mode": "reflect"}), ("Slice", "p axis five axis", "h", {}), *HEAD],
            {},
            "padding of mode reflect at the sides of images only",
        ),
        (
            [
                CONV, ("Reshape", "c rows", "r", {}), ("GlobalAveragePool", "r", "m", {}),
                ("Reshape", "m back", "g", {}), ("Add", "c g", "h", {}), *HEAD,
            ],
            {},
            "PyTorch to compute the operators of net.onnx, but got",
        ),
        ([CONV, ("Relu", "c", "h", {}), *HEAD], {"sha256": "0" * 64}, "as when the run began"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(
    nodes: list[Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    digest = {key: options.pop(key) for key in ("sha256",) if key in options}
    path = onnx_file(tmp_path / "net.onnx", nodes, WEIGHTS | CONSTANTS, **options)
    with pytest.raises(CptError, match=message) as raised:
        build_model(f"onnx:{path}", num_classes=5, in_channels=3, input_size=(8, 8), **digest)
    assert "\n" not in str(raised.value)
    if not digest and message == "CumSum in node 'the_CumSum'":
        assert isinstance(raised.value, ConversionError)
    with pytest.raises(DataError, match="Expected an ONNX file"):
        digest_of(tmp_path / "missing.onnx")


@pytest.mark.parametrize("batch", [None, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_networks_that_compute_sizes_of_their_batch_can_be_trained(
    name: str, dynamo: bool, batch: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(written(name, batch, dynamo=dynamo))
    model = build_onnx(path, num_classes=CLASSES, in_channels=3, input_size=(SIZE, SIZE))  # compared with onnxruntime
    prepared = prepare(model, torch.rand(2, 3, SIZE, SIZE), QuantizationConfig())
    prepared(torch.rand(3, 3, SIZE, SIZE)).square().sum().backward()
    gradients = [parameter.grad for parameter in prepared.parameters() if parameter.grad is not None]
    assert len(gradients) > 10
