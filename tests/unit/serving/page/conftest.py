import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cpt_deploy.bundle import Bundle, Golden, ImageProcessor, Preprocessing, write_bundle
from cpt_deploy.signature import Signature, TensorSpec
from cpt_serving.access.api_keys import add_key


def stroke_images():
    """A vertical and a horizontal bright bar on black, uint8 (2, 1, 8, 8)."""
    images = np.zeros((2, 1, 8, 8), np.uint8)
    images[0, 0, 1:7, 3:5] = 255
    images[1, 0, 3:5, 1:7] = 255
    return images


def stroke_weights():
    """Codes (2, 64): the two middle columns against the two middle rows."""
    vertical = np.full((8, 8), 0, np.int8)
    vertical[:, 3:5] += 30
    vertical[3:5, :] -= 30
    return np.stack([vertical.ravel(), -vertical.ravel()]).astype(np.int8)


@pytest.fixture(scope="session")
def grey_bundle(tmp_path_factory, bundle_contents, grey_onnx) -> Bundle:
    """A classifier of small grey drawings: is the bar vertical or horizontal?"""
    contents = bundle_contents("strokes")
    inputs = ((stroke_images() / 255 - 0.5) / 0.5).astype(np.float32)
    onnx, logits = grey_onnx(stroke_weights(), inputs)
    shapes = TensorSpec("image", "float32", (1, 8, 8)), TensorSpec("logits", "float32", (2,))
    changed = replace(
        contents,
        onnx=onnx,
        signature=Signature((shapes[0],), (shapes[1],)),
        golden=Golden({"image": inputs}, {"logits": logits}, contents.golden.scales),
        processor=ImageProcessor(Preprocessing(1, (8, 8), mean=(0.5,), std=(0.5,)), ("vertical", "horizontal")),
    )
    return write_bundle(tmp_path_factory.mktemp("strokes") / "bundle", contents=changed)


@pytest.fixture(scope="session")
def grey_onnx() -> Callable[..., Any]:
    """Makes the model of weights and its logits for inputs, the latter as onnxruntime computes them."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def make(weights, inputs):
        constants = {
            "x_scale": np.array(1 / 127, np.float32), "x_zero": np.array(128, np.uint8),
            "w": weights, "w_scale": np.full(2, 1 / 500, np.float32), "w_zero": np.zeros(2, np.int8),
            "y_scale": np.array(16 / 255, np.float32), "y_zero": np.array(128, np.uint8),
        }  # fmt: skip
        nodes = [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("QuantizeLinear", ["flat", "x_scale", "x_zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "x_scale", "x_zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"], axis=0),
            helper.make_node("Gemm", ["x", "weight"], ["product"], transB=1),
            helper.make_node("QuantizeLinear", ["product", "y_scale", "y_zero"], ["logit_codes"]),
            helper.make_node("DequantizeLinear", ["logit_codes", "y_scale", "y_zero"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "strokes",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        serialized = model.SerializeToString()
        return serialized, onnxruntime.InferenceSession(serialized).run(None, {"image": inputs})[0]

    return make


@pytest.fixture(scope="session")
def colours_url(shared_bundle, serve_here) -> Iterator[str]:
    with serve_here(shared_bundle.path) as url:
        yield url


@pytest.fixture(scope="session")
def strokes_url(grey_bundle, serve_here) -> Iterator[str]:
    with serve_here(grey_bundle.path) as url:
        yield url


@pytest.fixture(scope="session")
def two_models_url(shared_bundle, grey_bundle, tmp_path_factory, serve_here) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("models")
    for name, bundle in (("colours", shared_bundle), ("strokes", grey_bundle)):
        shutil.copytree(bundle.path, directory / name / "1")
    with serve_here(directory) as url:
        yield url


@pytest.fixture(scope="session")
def guarded_url(grey_bundle, tmp_path_factory, serve_here) -> Iterator[tuple[str, str]]:
    """The address of a server that wants API keys, and one of them."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    key = add_key(file, "visitor", ["infer"])
    with serve_here(grey_bundle.path, api_keys=file) as url:
        yield url, key
