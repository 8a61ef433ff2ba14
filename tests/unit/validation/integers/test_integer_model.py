"""The executor on a bundle's own graph against onnxruntime on its ONNX file, which are stored apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cpt_deploy.bundle import Bundle, BundleContents, Golden, ImageProcessor, Preprocessing, write_bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, QuantizedTensor
from cpt_deploy.integer.graph import to_dict
from cpt_deploy.integer.operations import Convolution, FullyConnected, GlobalAverage, Reshape
from cpt_deploy.validation import bundled_integer_model
from tests.unit.integer.graphs import graph_between

INPUTS = np.random.default_rng(5).normal(size=(6, 1, 8, 8)).astype(np.float32)


def integer_graph() -> IntegerGraph:
    """Convolution at 5 bits, mean, linear; codes within 63, so that no instruction set saturates."""
    rng = np.random.default_rng(4)

    def weights(name: str, shape: tuple[int, ...]) -> dict:
        return {
            "output": name,
            "codes": rng.integers(-63, 64, shape).astype(np.int8),
            "shift": 0,
            "scales": rng.uniform(0.005, 0.01, shape[0]).astype(np.float32),
            "bias": rng.integers(-500, 500, shape[0]).astype(np.int32),
            "bits": 7,
            "source": name,
        }

    tensors = [
        QuantizedTensor("x", 1 / 32, 128, 8, (1, 8, 8)),
        QuantizedTensor("a", 0.125, 0, 5, (4, 8, 8)),
        QuantizedTensor("mean", 0.0078125, 0, 8, (4, 1, 1)),
        QuantizedTensor("flat", 0.0078125, 0, 8, (4,)),
        QuantizedTensor("y", 0.015625, 128, 8, (3,)),
    ]
    operations = (
        Convolution(
            inputs=("x",), **weights("a", (4, 1, 3, 3)), strides=(1, 1), pads=(1,) * 4, dilations=(1, 1), groups=1
        ),
        GlobalAverage(("a",), "mean"),
        Reshape(("mean",), "flat"),
        FullyConnected(inputs=("flat",), **weights("y", (3, 4))),
    )
    return graph_between("x", "y", operations, {tensor.name: tensor for tensor in tensors})


def write_graph(path: Path, graph: IntegerGraph, onnx_graph: IntegerGraph) -> Bundle:
    """Write a bundle; its ONNX file may be of another graph than the one it carries."""
    description, arrays = to_dict(graph)
    logits = IntegerExecutor(onnx_graph)(torch.from_numpy(INPUTS)).numpy()
    contents = BundleContents(
        name="network",
        task="image-classification",
        signature=graph.signature,
        processor=ImageProcessor(
            Preprocessing(channels=1, size=(8, 8), mean=(0.5,), std=(0.25,)), ("zero", "one", "two")
        ),
        onnx=write_onnx(onnx_graph),
        tensors=arrays,
        graph=description,
        quantization={},
        golden=Golden({"image": INPUTS}, {"logits": logits}, {"logits": 0.015625}),
        architecture="test",
    )
    return write_bundle(path, contents=contents)


def test_logits_and_codes_are_those_of_the_executor(tmp_path):
    graph = integer_graph()
    found = bundled_integer_model(write_graph(tmp_path / "bundle", graph, graph)).run({"image": INPUTS})
    executor, codes = IntegerExecutor(graph), found.integers
    np.testing.assert_array_equal(found.outputs["logits"], executor(torch.from_numpy(INPUTS)).numpy())
    assert list(codes) == ["x", "a", "mean", "flat", "y"]
    assert all(value.dtype == np.uint8 for value in codes.values())


def test_an_exported_bundle_is_exact(validated, tmp_path, images):
    graph = integer_graph()
    report = validated(write_graph(tmp_path / "bundle", graph, graph), images, require_exact=True)
    assert report.reasons == report.notes == ()
    assert report.compared_integers == 150 * (64 + 256 + 4 + 4 + 3)
    assert not any(layer.possible for layer in report.saturation)


def test_a_file_with_another_weight_than_the_graph_is_caught_at_that_layer(validated, tmp_path, images):
    graph = integer_graph()
    entry, convolution, *others = graph.operations
    codes = convolution.codes.copy()
    codes[2, 0, 1, 1] += 20
    other = replace(graph, operations=(entry, replace(convolution, codes=codes), *others))
    report = validated(write_graph(tmp_path / "bundle", graph, other), images, require_exact=True)
    assert (report.first_difference.name, report.first_difference.operator) == ("a", "Conv")
    assert report.tensors[0].mismatches == 0
    constants, integers = report.reasons[:2]
    assert "in tensor 'a', 1 of 144 quantized weights differ" in constants
    assert "first in 'a', the result of Conv" in integers


def test_a_bundle_without_its_graph_is_a_bundle_error(bundle_contents, tmp_path):
    contents = bundle_contents()
    del contents.graph["tensors"]
    with pytest.raises(BundleError, match="graph"):
        bundled_integer_model(write_bundle(tmp_path / "bundle", contents=contents))
