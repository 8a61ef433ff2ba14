"""Every kind of constant of model.onnx that is edited is found and its tensor named, without running anything."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from cpt_deploy.bundle import BundleContents, ImageProcessor, Preprocessing, write_bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.export import write_onnx
from cpt_deploy.export.golden import golden_sample
from cpt_deploy.integer.graph import IntegerGraph, to_dict
from cpt_deploy.integer.operations import Add, Convolution, FullyConnected, GlobalAverage, Pad, Reshape
from cpt_deploy.integer.tensors import QuantizedTensor as Q
from cpt_deploy.validation import compare_constants, constant_reasons
from tests.unit.integer.graphs import graph_between


def make_graph(*, channels=3, size=8, stride=1, pad=1, kernel=3, bits=8, shift=0, seed=0) -> IntegerGraph:
    """Convolution, residual block, mean and linear, with codes that use their whole range."""
    rng = np.random.default_rng(seed)
    reach, out = 2 ** (bits - 1) - 1, (size + 2 * pad - kernel) // stride + 1

    def weights(*shape):
        scales = rng.uniform(1e-3, 2e-3, shape[0]).astype(np.float32)
        codes, bias = rng.integers(-reach, reach + 1, shape), rng.integers(-900, 900, shape[0])
        return {
            "codes": codes.astype(np.int8), "shift": shift, "scales": scales, "bias": bias.astype(np.int32),
            "bits": bits, "source": "layer",
        }  # fmt: skip

    def f32(value):
        return float(np.float32(value))

    tensors = [
        Q("x", f32(0.02), 128, 8, (channels, size, size)),
        Q("a", f32(0.05), 0, bits, (6, out, out)),
        Q("b", f32(0.06), 120, 8, (6, out, out)),
        Q("sum", f32(0.07), 0, 8, (6, out, out)),
        Q("mean", f32(0.03), 0, 8, (6, 1, 1)),
        Q("flat", f32(0.03), 0, 8, (6,)),
        Q("y", f32(0.04), 130, 8, (3,)),
    ]
    first = {"strides": (stride, stride), "pads": (pad,) * 4, "dilations": (1, 1), "groups": 1}
    second = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "groups": 2}
    operations = (
        Convolution(("x",), "a", **weights(6, channels, kernel, kernel), **first),
        Convolution(("a",), "b", **weights(6, 3, 3, 3), **second),
        Add(("a", "b"), "sum"),
        GlobalAverage(("sum",), "mean"),
        Reshape(("mean",), "flat"),
        FullyConnected(("flat",), "y", **weights(3, 6)),
    )
    return graph_between("x", "y", operations, {tensor.name: tensor for tensor in tensors})


def write(path: Path, graph: IntegerGraph):
    channels, height, width = graph.tensors["x"].shape
    description, arrays = to_dict(graph)
    model = write_onnx(graph)
    return write_bundle(
        path,
        contents=BundleContents(
            name="network",
            task="image-classification",
            signature=graph.signature,
            processor=ImageProcessor(
                Preprocessing(channels, (height, width), mean=(0.5,) * channels, std=(0.25,) * channels),
                ("zero", "one", "two"),
            ),
            onnx=model,
            tensors=arrays,
            graph=description,
            quantization={},
            golden=golden_sample(graph, {"image": torch.zeros(1, channels, height, width)}, model),
            architecture="test",
        ),
    )


def edit(bundle, change):
    """Change model.onnx, keeping the checksums right."""
    model = onnx.load(bundle.onnx_path)
    change({initializer.name: initializer for initializer in model.graph.initializer}, model.graph)
    data = model.SerializeToString()
    old = hashlib.sha256(bundle.onnx_path.read_bytes()).hexdigest()
    bundle.onnx_path.write_bytes(data)
    sums = bundle.path / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(old, hashlib.sha256(data).hexdigest()))
    return type(bundle).open(bundle.path)


def add_to(name, index, amount):
    """Change one value of a constant that exists."""

    def change(constants, graph):
        array = numpy_helper.to_array(constants[name]).copy()
        array[index] += np.asarray(amount, array.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(array, name))

    return change


def rewire(nodes, position, value):
    """Give nodes another constant, as zero points and Clip bounds are shared by many tensors."""

    def change(constants, graph):
        graph.initializer.append(numpy_helper.from_array(value, "edited"))
        for node in graph.node:
            if node.output[0] in nodes:
                node.input[position] = "edited"

    return change


U8 = np.uint8
EDITS = {
    "weight code": (add_to("b.weight_codes", (5, 2, 0, 1), -1), "b", "quantized weights"),
    "weight code of the first layer": (add_to("a.weight_codes", (1, 0, 1, 1), 1), "a", "quantized weights"),
    "weight code of an added channel": (add_to("a.weight_codes", (1, 3, 1, 1), 1), "a", "quantized weights"),
    "weight scale": (add_to("y.weight_scales", 1, 1e-9), "y", "weight scales"),
    "bias": (add_to("b.bias_codes", 3, 1), "b", "quantized biases"),
    "bias scale": (add_to("b.bias_scales", 3, 1e-9), "b", "bias scales"),
    "activation scale": (add_to("sum.scale", (), 1e-8), "sum", "scale"),
    "zero point where codes are made": (rewire({"b"}, 2, U8(119).reshape(())), "b", "zero point"),
    "zero point where codes are read": (rewire({"b.real"}, 2, U8(119).reshape(())), "b", "zero point"),
    "weight zero point": (rewire({"y.weight"}, 2, np.array([0, 1, 0], np.int8)), "y", "weight zero points"),
    "value of padding": (rewire({"x.padded"}, 2, U8(0).reshape(())), "x", "padding"),
}


@pytest.mark.parametrize("edited", EDITS, ids=str)
def test_an_edited_constant_is_found_and_its_tensor_named(tmp_path, edited):
    change, tensor, part = EDITS[edited]
    bundle = write(tmp_path / "bundle", make_graph())
    assert compare_constants(bundle).differences == ()
    first = compare_constants(edit(bundle, change)).differences[0]
    assert (first.tensor, first.part, first.differing) == (tensor, part, 1)
    assert f"tensor '{tensor}'" in constant_reasons(compare_constants(type(bundle).open(bundle.path)))[0]


def test_a_range_of_codes_that_was_widened_is_found(tmp_path):
    bundle = write(tmp_path / "bundle", make_graph(bits=4, shift=4))
    changed = edit(bundle, rewire({"a"}, 2, U8(16).reshape(())))
    assert [(d.tensor, d.part) for d in compare_constants(changed).differences] == [("a", "range of integers")]


def test_what_differs_is_told_in_numbers(tmp_path):
    bundle = edit(write(tmp_path / "bundle", make_graph()), add_to("y.bias_codes", 2, 5))
    (difference,) = compare_constants(bundle).differences
    bias = int(make_graph().operations[-1].bias[2])
    assert difference.detail == f"expected {bias}, but got {bias + 5} at (2,)"


def test_another_operator_and_another_input_are_found(tmp_path):
    def multiply(constants, graph):
        next(node for node in graph.node if node.op_type == "Add").op_type = "Mul"

    def swap(constants, graph):
        node = next(node for node in graph.node if node.op_type == "Add")
        node.input[1] = node.input[0]

    for change in (multiply, swap):
        bundle = edit(write(tmp_path / change.__name__, make_graph()), change)
        assert [d.tensor for d in compare_constants(bundle).differences] == ["sum"]


def test_a_scale_that_is_computed_in_the_file_is_not_taken_for_a_constant(tmp_path):
    def compute(constants, graph):
        quantizer = next(node for node in graph.node if node.output[0] == "sum")
        quantizer.input[1] = "mean.real"

    differences = compare_constants(edit(write(tmp_path / "bundle", make_graph()), compute)).differences
    assert ("sum", "graph") in [(d.tensor, d.part) for d in differences]


@settings(max_examples=25)
@given(
    channels=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    pad=st.integers(0, 3),
    kernel=st.sampled_from([3, 5, 7]),
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_every_form_of_the_first_layer_is_as_exported_and_one_code_less_is_not(
    tmp_path_factory, channels, stride, pad, kernel, bits, seed
):
    graph = make_graph(
        channels=channels, stride=stride, pad=pad, kernel=kernel, bits=bits, shift=8 - bits, seed=seed, size=12
    )
    bundle = write(tmp_path_factory.mktemp("bundles") / "bundle", graph)
    assert compare_constants(bundle).differences == ()
    assert compare_constants(bundle).compared > sum(operation.codes.size for operation in graph.weighted())
    entry, first, *others = graph.operations
    codes = first.codes.copy()
    place = tuple(np.random.default_rng(seed).integers(codes.shape))
    codes[place] += 1 if codes[place] <= 0 else -1
    other = replace(graph, operations=(entry, replace(first, codes=codes), *others))
    changed = edit(bundle, lambda constants, _: constants["a.weight_codes"].CopyFrom(_stored(other)))
    (difference,) = compare_constants(changed).differences
    assert (difference.tensor, difference.part, difference.differing) == ("a", "quantized weights", 1)


def padded_graph(mode: str) -> IntegerGraph:
    """The graph of `make_graph` with codes around the first layer's output, which the second no longer pads."""
    graph = make_graph()
    entry, first, second, *others = graph.operations
    inner = graph.tensors["a"]
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in ("x", "a")}
    tensors["padded"] = replace(inner, name="padded", shape=(6, 10, 10))
    pad = Pad(("a",), "padded", mode, (0, 0, 1, 1, 0, 0, 1, 1))
    # after the first layer comes the padding; what adds both needs one of the sizes, so it adds the second twice
    second, total = replace(second, inputs=("padded",), pads=(0,) * 4), replace(others[0], inputs=("b", "b"))
    operations = (entry, first, pad, second, total, *others[1:])
    return replace(graph, operations=operations, tensors=tensors | graph.tensors | {"padded": tensors["padded"]})


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_is_as_exported_and_any_other_is_found(tmp_path, mode):
    bundle = write(tmp_path / "bundle", padded_graph(mode))
    assert compare_constants(bundle).differences == ()
    wider = edit(bundle, lambda constants, _: _set(constants["padded.pads"], np.array([0, 0, 2, 0, 0, 0, 0, 2])))
    (difference,) = compare_constants(wider).differences
    assert (difference.tensor, difference.part, difference.differing) == ("padded", "padding", 4)


@pytest.mark.parametrize(("mode", "other"), [("constant", "reflect"), ("reflect", "edge")])
def test_another_way_to_pad_is_found(tmp_path, mode, other):
    def change(constants, graph):
        node = next(node for node in graph.node if node.op_type == "Pad" and node.output[0] == "padded")
        next(attribute for attribute in node.attribute if attribute.name == "mode").s = other.encode()

    (reason,) = constant_reasons(compare_constants(edit(write(tmp_path / "bundle", padded_graph(mode)), change)))
    assert "padded" in reason


def _set(constant: onnx.TensorProto, value: np.ndarray) -> None:
    constant.CopyFrom(numpy_helper.from_array(value, constant.name))


def _stored(graph: IntegerGraph) -> onnx.TensorProto:
    model = onnx.load_from_string(write_onnx(graph))
    return next(constant for constant in model.graph.initializer if constant.name == "a.weight_codes")


def test_a_bundle_without_its_graph_is_damaged(tmp_path):
    bundle = write(tmp_path / "bundle", make_graph())
    with pytest.raises(BundleError, match=r"quantization\.json"):
        compare_constants(replace(bundle, quantization={"graph": {"tensors": []}}))
