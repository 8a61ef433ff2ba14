"""What the tests of several packages share: a tiny integer classifier as a bundle, and the folder of real data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import (
    Bundle,
    BundleContents,
    CardFields,
    Golden,
    ImageProcessor,
    Preprocessing,
    write_bundle,
)
from cpt_deploy.signature import Signature, TensorSpec, to_json

COLOURS = ("red", "green", "blue")
INPUT_SCALE, INPUT_ZERO = 1 / 127, 128
WEIGHT_SCALE = 1 / 2000
LOGIT_SCALE, LOGIT_ZERO = 16 / 255, 128
COLOUR_SIGNATURE = Signature((TensorSpec("image", "float32", (3, 8, 8)),), (TensorSpec("logits", "float32", (3,)),))


def colour_weights() -> npt.NDArray[np.int8]:
    """Codes (3, 192) of a classifier of 8x8 RGB images: which channel is brightest.

    Within 63, so that no instruction set saturates on the way.
    """
    return np.repeat(np.where(np.eye(3, dtype=bool), 60, -30), 64, axis=1).astype(np.int8)


def colour_codes(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The classifier's output codes (N, 3), in plain integer arithmetic."""
    quantized = np.clip(np.rint(inputs / np.float32(INPUT_SCALE)) + INPUT_ZERO, 0, 255).astype(np.int64) - INPUT_ZERO
    sums = quantized.reshape(len(inputs), -1) @ colour_weights().T.astype(np.int64)
    factor = np.float32(np.float32(INPUT_SCALE) * np.float32(WEIGHT_SCALE)) / np.float32(LOGIT_SCALE)
    return np.clip(np.rint(sums.astype(np.float32) * factor) + LOGIT_ZERO, 0, 255).astype(np.uint8)


def colour_logits(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The classifier's logits (N, 3)."""
    centred = colour_codes(inputs).astype(np.int32) - LOGIT_ZERO
    return centred.astype(np.float32) * np.float32(LOGIT_SCALE)


def colour_onnx() -> bytes:
    """The classifier as ONNX: QuantizeLinear, DequantizeLinear around one Gemm."""
    constants = {
        "x_scale": np.array(INPUT_SCALE, np.float32),
        "x_zero": np.array(INPUT_ZERO, np.uint8),
        "w": colour_weights(),
        "w_scale": np.full(3, WEIGHT_SCALE, np.float32),
        "w_zero": np.zeros(3, np.int8),
        "y_scale": np.array(LOGIT_SCALE, np.float32),
        "y_zero": np.array(LOGIT_ZERO, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "x_scale", "x_zero"], ["image_codes"]),
        helper.make_node("DequantizeLinear", ["image_codes", "x_scale", "x_zero"], ["x"]),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "x_scale", "x_zero"], ["flat_codes"]),
        helper.make_node("DequantizeLinear", ["flat_codes", "x_scale", "x_zero"], ["flat_x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"], axis=0),
        helper.make_node("Gemm", ["flat_x", "weight"], ["product"], transB=1),
        helper.make_node("QuantizeLinear", ["product", "y_scale", "y_zero"], ["logit_codes"]),
        helper.make_node("DequantizeLinear", ["logit_codes", "y_scale", "y_zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def colour_graph() -> dict[str, Any]:
    """The classifier as quantization.json describes it."""
    image = {"scale": float(np.float32(INPUT_SCALE)), "zero_point": INPUT_ZERO, "bits": 8}
    logits = {"scale": float(np.float32(LOGIT_SCALE)), "zero_point": LOGIT_ZERO, "bits": 8}
    layer = {
        "codes": {"tensor": "fc.weight"}, "scales": {"tensor": "fc.weight_scale"}, "bias": {"tensor": "fc.bias"},
        "shift": 0, "bits": 8, "source": "fc",
    }  # fmt: skip
    return {
        "signature": to_json(COLOUR_SIGNATURE),
        "outputs": ["logit_codes"],
        "tensors": [
            {"name": "image_codes", "shape": [3, 8, 8], **image}, {"name": "flat_codes", "shape": [192], **image},
            {"name": "logit_codes", "shape": [3], **logits},
        ],
        "operations": [
            {"type": "Quantize", "inputs": ["image"], "output": "image_codes"},
            {"type": "Reshape", "inputs": ["image_codes"], "output": "flat_codes"},
            {"type": "FullyConnected", "inputs": ["flat_codes"], "output": "logit_codes", **layer},
        ],
    }  # fmt: skip


def colour_contents(name: str = "colours") -> BundleContents:
    """All that the bundle of the classifier consists of."""
    inputs = np.random.default_rng(0).uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    return BundleContents(
        name=name,
        task="image-classification",
        signature=COLOUR_SIGNATURE,
        processor=ImageProcessor(Preprocessing(3, (8, 8), mean=(0.5,) * 3, std=(0.5,) * 3), COLOURS),
        onnx=colour_onnx(),
        tensors={
            "fc.weight": colour_weights(),
            "fc.weight_scale": np.full(3, WEIGHT_SCALE, np.float32),
            "fc.bias": np.zeros(3, np.int32),
        },
        graph=colour_graph(),
        quantization={"activations": [{"name": "logits", "bits": 8, "scale": LOGIT_SCALE, "zero_point": LOGIT_ZERO}]},
        golden=Golden({"image": inputs}, {"logits": colour_logits(inputs)}, scales={"logits": LOGIT_SCALE}),
        architecture="colours",
        facts={"bits": 8},
        recipe="name: colours\n",
        card=CardFields(dataset="colours"),
    )


@pytest.fixture(scope="session")
def bundle_contents() -> Callable[..., BundleContents]:
    """Makes the contents of a bundle; the argument is the model's name."""
    return colour_contents


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A fresh bundle of the tiny classifier in a directory of its own."""
    return write_bundle(tmp_path / "bundle", contents=colour_contents())


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same bundle, for tests that leave it as it is."""
    return write_bundle(tmp_path_factory.mktemp("shared") / "bundle", contents=colour_contents())


@pytest.fixture(scope="session")
def reference_codes() -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]]:
    """The tiny classifier in plain integer arithmetic, inputs (N, 3, 8, 8) to codes (N, 3)."""
    return colour_codes


@pytest.fixture(scope="session")
def reference_logits() -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """The tiny classifier's logits (N, 3) for inputs (N, 3, 8, 8), from these integers."""
    return colour_logits


@pytest.fixture(scope="session")
def odd_images() -> Path:
    """The folder of odd and broken image files."""
    folder = Path(os.environ.get("CPT_DATA_DIR", "")) / "odd-images"
    if "CPT_DATA_DIR" not in os.environ or not folder.is_dir():
        pytest.skip("needs the folder odd-images in CPT_DATA_DIR")
    return folder
