"""ONNX files of image classifiers against onnxruntime on the file itself: named, of one size, with a free batch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpt_deploy.errors import ConversionError, DataError
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading.classifier import ImageClassifier
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers
from tests.unit.onnx_graph.reading.networks import Network, run

IMAGES = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype(np.float32)


def classifier(
    shape: list[int | str], *, last: str | None = None, sizes: bool = False, channels_last: bool = False
) -> bytes:
    """Return a classifier of 5 classes with constants of its batch size, if that is fixed."""
    network = Network(shape)
    x = network.op("Transpose", "x", perm=[0, 3, 1, 2]) if channels_last else "x"
    x = network.op("Relu", network.conv(x, 3, 4))
    if sizes:
        x = network.op("Resize", x, "", "", np.array([shape[0], 4, 16, 16]), mode="nearest")
        x = network.op("Reshape", x, np.array([shape[0], 4, 256]))
        x = network.op("ReduceMean", x, axes=[2], keepdims=0)
    else:
        x = network.op("Flatten", network.op("GlobalAveragePool", x))
    x = network.op("Gemm", x, network.weight(5, 4), network.weight(5), transB=1)
    return network.file(network.op(last, x, axis=1) if last else x)


def opened(content: bytes, folder: Path) -> ImageClassifier:
    (folder / "net.onnx").write_bytes(content)
    return ImageClassifier.read(folder / "net.onnx")


@pytest.mark.parametrize("batch", ["N", 1, 2])
@pytest.mark.parametrize("last", [None, "Softmax", "LogSoftmax"])
def test_a_fixed_batch_becomes_free_and_probabilities_logits(
    batch: int | str, last: str | None, tmp_path: Path
) -> None:
    content = classifier([batch, 3, 8, 8], last=last, sizes=batch != "N")
    source = opened(content, tmp_path)
    assert (source.input_shape, source.classes) == ((3, 8, 8), 5)
    network = source.network((3, 8, 8), 5)
    (logits,) = run(network.original, {"image": IMAGES[:3]})
    expected = [
        run(content, {"x": np.repeat(image[None], 1 if batch == "N" else int(batch), 0)})[0][0] for image in IMAGES[:3]
    ]
    if last:
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.exp(logits) if last == "Softmax" else logits, expected, rtol=1e-4, atol=1e-6)
    result = quantize_onnx(network, [{"image": IMAGES}])
    assert [tensor.name for tensor in (*result.graph.signature.inputs, *result.graph.signature.outputs)] == [
        "image",
        "logits",
    ]
    assert compare_integers(result.graph, write_onnx(result.graph), {"image": IMAGES[:3]}).mismatches == 0
    assert result.placement.integer_share == 1


def test_channels_last_and_free_sizes_are_taken(tmp_path: Path) -> None:
    content = classifier(["N", 8, 8, 3], channels_last=True)
    last = opened(content, tmp_path)
    assert (last.channels_last, last.input_shape) == (True, (3, 8, 8))
    (got,) = run(last.network((3, 8, 8), 5).original, {"image": IMAGES})
    np.testing.assert_allclose(got, run(content, {"x": IMAGES.transpose(0, 2, 3, 1)})[0], rtol=1e-4, atol=1e-6)
    both = opened(classifier(["N", "height", "width", 3], channels_last=True), tmp_path)
    assert (both.channels_last, both.input_shape) == (True, (3, None, None))
    np.testing.assert_allclose(run(both.network((3, 8, 8), 5).original, {"image": IMAGES})[0], got, rtol=1e-4)
    free = opened(classifier(["N", 3, "height", "width"]), tmp_path)
    assert free.input_shape == (3, None, None)
    assert free.network((3, 12, 10), 5).shape("image") == (None, 3, 12, 10)


def test_names_of_other_tensors_may_be_those_of_the_ends(tmp_path: Path) -> None:
    model = onnx.load_from_string(classifier(["N", 3, 8, 8]))
    names = {model.graph.node[0].output[0]: "logits", model.graph.node[1].output[0]: "image"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    network = opened(model.SerializeToString(), tmp_path).network((3, 8, 8), 5)
    np.testing.assert_allclose(
        run(network.original, {"image": IMAGES})[0], run(model.SerializeToString(), {"x": IMAGES})[0], rtol=1e-5
    )


def test_samples_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    network = Network([2, 3, 8, 8])
    x = network.op("Flatten", network.op("GlobalAveragePool", network.conv("x", 3, 5)))
    content = network.file(network.op("Sub", x, network.op("ReduceMean", x, axes=[0])))
    with pytest.raises(ConversionError, match="each image by itself"):
        opened(content, tmp_path).network((3, 8, 8), 5)


@pytest.mark.parametrize(
    ("shape", "element", "outputs", "message"),
    [
        (["N", 3], TensorProto.INT64, 1, r"float \(N, C, H, W\).*got int64 \(\?, 3\)"),
        (["N", 4, 8, 8], TensorProto.FLOAT, 1, "1 or 3 channels"),
        (["N", 3, 8, 8], TensorProto.FLOAT, 2, "one output, the logits, but net.onnx has 2"),
        (["N", 3, 8, 8], TensorProto.FLOAT, 1, r"logits \(N, classes\) as the output"),
    ],
)
def test_other_models_are_told_apart(
    shape: list[int | str], element: int, outputs: int, message: str, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Identity", ["x"], [f"y{i}"]) for i in range(outputs)]
    infos = [helper.make_tensor_value_info(f"y{i}", element, shape) for i in range(outputs)]
    graph = helper.make_graph(nodes, "graph", [helper.make_tensor_value_info("x", element, shape)], infos)
    with pytest.raises(ConversionError, match=message) as caught:
        opened(helper.make_model(graph).SerializeToString(), tmp_path)
    assert "--data inputs.npz" in str(caught.value.hint)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    source = opened(classifier(["N", 3, 8, 8]), tmp_path)
    with pytest.raises(ConversionError, match=r"7 classes, as the data has, but net\.onnx has 5"):
        source.network((3, 8, 8), 7)
    for content in (b"", b"no model at all", classifier(["N", 3, 8, 8])[:200]):
        with pytest.raises(DataError, match=r"Expected an ONNX model in .*net\.onnx") as caught:
            opened(content, tmp_path)
        assert "\n" not in str(caught.value)
