"""The files themselves: what they hold, how large they are, what they refuse."""

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from cpt_deploy.bundle import ImageProcessor, OnnxRuntimeModel, Preprocessing
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.errors import BundleError, UsageError
from cpt_deploy.export import ModelIdentity, export_bundle, float_model, write_float_onnx, write_onnx
from cpt_deploy.export.bundle_export import digest
from cpt_deploy.integer import IntegerExecutor, freeze, graph_from_bundle
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_native, prepare

LABELS = tuple(f"class {i}" for i in range(10))
PREPROCESSING = Preprocessing(channels=3, size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32))


@pytest.fixture(scope="module")
def model(network: nn.Module) -> QuantizedModel:
    prepared = prepare(network, torch.zeros(2, 3, 32, 32), QuantizationConfig())
    calibrate(prepared, [torch.randn(8, 3, 32, 32) for _ in range(2)])
    return prepared.eval()


def identity(labels: tuple[str, ...] = LABELS) -> ModelIdentity:
    processor = ImageProcessor(PREPROCESSING, labels)
    return ModelIdentity("net", "resnet20", "image-classification", processor, {"dataset": "noise"})


def test_a_bundle_holds_the_model_and_reproduces_its_golden_sample(model: QuantizedModel, tmp_path: Path) -> None:
    bundle = export_bundle(model, tmp_path / "bundle", identity(), torch.randn(4, 3, 32, 32))
    assert OnnxRuntimeModel(bundle.onnx_path).reproduce_golden(bundle.golden).reproduced
    assert bundle.facts["weight_bits"] == 8
    assert bundle.facts["dataset"] == "noise"
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(IntegerExecutor(graph_from_bundle(bundle))(x), IntegerExecutor(freeze(model))(x))


def test_quantization_json_tells_the_digest_of_each_weight(model: QuantizedModel, tmp_path: Path) -> None:
    bundle = export_bundle(model, tmp_path / "bundle", identity(), torch.randn(1, 3, 32, 32), weight_bits=4)
    weights = bundle.quantization["weights"]
    operations = freeze(model, weight_bits=4).weighted()
    assert [w["codes_sha256"] for w in weights] == [digest(operation.codes) for operation in operations]
    assert {w["bits"] for w in weights} == {4, 8}
    assert json.dumps(bundle.quantization)


def test_labels_that_do_not_fit_leave_nothing_behind(model: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="label"):
        export_bundle(model, tmp_path / "bundle", identity(LABELS[:3]), torch.randn(1, 3, 32, 32))
    assert not list(tmp_path.iterdir())


def test_the_file_has_int8_weights_uint8_activations_and_a_free_batch(model: QuantizedModel) -> None:
    proto = onnx.load_model_from_string(write_onnx(freeze(model), metadata={"task": "classify"}))
    types = {i.name: numpy_helper.to_array(i).dtype for i in proto.graph.initializer}
    assert {dtype.name for name, dtype in types.items() if name.endswith("weight_codes")} == {"int8"}
    assert {dtype.name for name, dtype in types.items() if name.endswith("bias_codes")} == {"int32"}
    assert all(numpy_helper.to_array(i).shape == () for i in proto.graph.initializer if i.name.endswith(".scale")), (
        "scales of shape [1] keep additions in float"
    )
    assert [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "N", 3, 32, 32,
    ]  # fmt: skip
    assert {prop.key: prop.value for prop in proto.metadata_props} == {"task": "classify", PORTABLE_KEY: "true"}


def test_a_native_file_does_not_say_that_it_is_portable(model: QuantizedModel) -> None:
    native = copy.deepcopy(model)
    make_native(native)
    proto = onnx.load_model_from_string(write_onnx(freeze(native)))
    assert not proto.metadata_props


def test_the_file_is_at_most_0_27_of_float32(model: QuantizedModel) -> None:
    assert len(write_onnx(freeze(model))) <= 0.27 * len(write_float_onnx(model))


@pytest.mark.parametrize("opset", [12, 26])
def test_opsets_out_of_range_are_refused(model: QuantizedModel, opset: int) -> None:
    with pytest.raises(UsageError, match="opset"):
        write_onnx(freeze(model), opset=opset)


def test_the_float_reference_is_the_float_network(network: nn.Module, model: QuantizedModel) -> None:
    reference = float_model(model)
    assert not any("Quantized" in type(module).__name__ for module in reference.modules())
    original = copy.deepcopy(network).eval()
    statistics = {k: v for k, v in reference.state_dict().items() if k in original.state_dict()}
    original.load_state_dict(statistics)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(reference(x), original(x), atol=1e-5)
    session = onnxruntime.InferenceSession(write_float_onnx(model), providers=["CPUExecutionProvider"])
    served = session.run(["logits"], {"image": x.numpy()})[0]
    assert np.allclose(served, original(x).detach().numpy(), atol=1e-4)
