"""Portable, symmetric and narrow bundles of a network with every kind of layer beside float operations."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from cpt_deploy.bundle import ImageProcessor, Preprocessing
from cpt_deploy.export import ModelIdentity, export_bundle, write_float_onnx
from cpt_deploy.quantization import (
    QuantizationConfig,
    calibrate,
    make_native,
    make_symmetric,
    prepare,
    reduced_layers,
)
from cpt_deploy.report import render_validation_page
from cpt_deploy.validation import bundle_saturation, compare_constants

LABELS = ("zero", "one", "two")
SHAPE = (1, 8, 8)
PROCESSOR = ImageProcessor(Preprocessing(1, (8, 8), mean=(0.5,), std=(0.25,)), LABELS)
IDENTITY = ModelIdentity("forms", "test", "image-classification", PROCESSOR)
FORMS = {
    "portable": {},
    "native": {"native": True},
    "symmetric": {"symmetric": True},
    "4 bits": {"weight_bits": 4, "activation_bits": 4},
    "4 bits, native": {"native": True, "weight_bits": 4, "activation_bits": 4},
    "3 bits, symmetric": {"symmetric": True, "weight_bits": 3},
}
LAYERS = ("stem.0", "block.0", "block.3", "attention.in_proj", "attention.out_proj", "mlp.1", "mlp.3", "head")


class EveryLayer(nn.Module):
    """Convolutions around a sum, embedded positions, attention, and Linears on tokens and on rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.position = nn.Embedding(16, 16)
        self.register_buffer("index", torch.arange(16))
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        x = x.flatten(2).transpose(1, 2) + self.position(self.index)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        result: Tensor = self.head((x + self.mlp(x)).mean(1))
        return result


def prepared(*, native=False, symmetric=False, weight_bits=None, activation_bits=None):
    torch.manual_seed(0)
    network = EveryLayer()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # biases of zero would hide how they are added
    model = prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    if symmetric:
        make_symmetric(model, activation_bits)
    if native:
        make_native(model)
    calibrate(model, [torch.randn(64, *SHAPE)], weight_bits=weight_bits, activation_bits=activation_bits)
    return model.eval()


@pytest.fixture(
    scope="module",
    params=[name if name == "symmetric" else pytest.param(name, marks=pytest.mark.slow) for name in FORMS],
)
def form(request, tmp_path_factory):
    """What was asked for, the model and its bundle."""
    asked = FORMS[request.param]
    bits = {key: asked.get(key) for key in ("weight_bits", "activation_bits")}
    model = prepared(**asked)
    folder = tmp_path_factory.mktemp("forms") / "bundle"
    return asked, model, export_bundle(model, folder, IDENTITY, torch.randn(4, *SHAPE), **bits)


@pytest.fixture(scope="module")
def report(validated, form, images):
    asked, model, bundle = form
    bits = asked.get("weight_bits"), asked.get("activation_bits")

    def run(inputs):
        with torch.no_grad(), model.at_max_bits(*bits):
            return {"logits": model(torch.from_numpy(inputs["image"])).numpy()}

    return validated(bundle, images, trained=run, max_drop=5.0, require_exact=True)


def test_every_integer_is_onnxruntimes_and_no_layer_is_left_in_float(report):
    assert report.passed, report.reasons
    assert report.mismatching_integers == 0
    assert report.constants.differences == ()
    convolutions, tokens = 3 * 16 * 16, 16 * (16 + 16 + 48)
    assert report.compared_integers >= 150 * (convolutions + tokens)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(report.graph.float_operators)
    assert report.graph.float_operators["MatMul"] + report.graph.float_operators["FusedMatMul"] == 2  # of attention


def test_the_file_has_standard_operators_alone(form):
    model = onnx.load(form[2].onnx_path)
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.domain for entry in model.opset_import} == {""}


def test_symmetric_quantizers_are_of_int8_around_0(form):
    asked, _, bundle = form
    model = onnx.load(bundle.onnx_path)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    zeros = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(zeros) >= 8
    expected = np.int8 if asked.get("symmetric") else np.uint8
    assert {zero.dtype for zero in zeros} == {np.dtype(expected)}
    activations = bundle.quantization["activations"]
    assert {entry["symmetric"] for entry in activations} == {bool(asked.get("symmetric"))}
    if asked.get("symmetric"):
        assert not any(zeros)
        assert {(entry["zero_point"], entry["bits"]) for entry in activations} == {(0, 8)}
    assert bundle.facts.get("activations") == ("symmetric" if asked.get("symmetric") else None)


def worst_pairs(path):
    """Of each product in an ONNX file, the greatest sum of two of its int8 weights of one sign in a channel."""
    model = onnx.load(path)
    codes = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight_codes") and node.attribute:
            rows = np.moveaxis(codes[node.input[0]].astype(int), node.attribute[0].i, 0)
            rows = np.sort(rows.reshape(len(rows), -1), axis=1)
            yield max(int(rows[:, -2:].clip(0).sum(1).max()), int((-rows[:, :2]).clip(0).sum(1).max()))


def test_what_can_saturate_without_vnni_is_told_and_portable_files_cannot(form, report):
    asked, _, bundle = form
    layers = bundle_saturation(bundle)
    assert len(layers) == len(LAYERS)  # all that multiply, not the embedding
    hazard = any(layer.possible for layer in layers)
    assert hazard == bool(asked.get("native"))  # with weights of 4 bits the first and the last layer hold 8
    assert bundle.facts["portable"] == (not hazard)
    assert bool(bundle.facts["reduced_layers"]) == (not asked.get("native") and not asked.get("symmetric"))
    unpacked = list(worst_pairs(bundle.onnx_path))
    assert len(unpacked) >= 2
    if not asked.get("symmetric"):
        assert (max(unpacked) <= 128) == (not hazard)  # 255 · 128 fits into int16
    page = render_validation_page(report.to_dict(), LABELS)
    assert ("no layer of this network can saturate" in page) == (not hazard)


def test_the_card_names_the_option_that_onnxruntime_needs_if_any(form):
    card = (form[2].path / "README.md").read_text()
    assert ("session.x64quantprecision" in card) == bool(form[0].get("native"))
    assert ("session.qdqisint8allowed" in card) == bool(form[0].get("symmetric"))


def test_few_bits_are_packed_in_layers_on_tokens_too(form):
    asked, _, bundle = form
    model = onnx.load(bundle.onnx_path)
    kinds = {entry.name: entry.data_type for entry in model.graph.initializer if entry.name.endswith("weight_codes")}
    packed = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT4]
    assert len(kinds) == len(LAYERS) + 1
    # first and last layer and the embedding hold 8 bits
    assert len(packed) == (len(LAYERS) - 2 if asked.get("weight_bits") else 0)


def test_only_layers_that_multiply_lose_range_and_none_beside_signed_activations():
    assert tuple(layer.layer for layer in reduced_layers(prepared())) == LAYERS
    assert reduced_layers(prepared(symmetric=True)) == []


@pytest.mark.parametrize(("part", "words"), [("weight_codes", "quantized weights"), ("weight_scales", "weight scales")])
def test_an_edited_row_of_an_embedding_is_named(part, words, tmp_path, edited):
    bundle = export_bundle(prepared(), tmp_path / "bundle", IDENTITY, torch.randn(2, *SHAPE))
    assert compare_constants(bundle).differences == ()
    output = next(entry["output"] for entry in bundle.quantization["weights"] if entry["layer"] == "position")
    (difference,) = compare_constants(edited(bundle, tmp_path / "edited", f"{output}.{part}")).differences
    assert (difference.tensor, difference.part, difference.differing) == (output, words, 1)


def test_the_float_file_is_the_network_without_quantizers():
    torch.manual_seed(1)
    network = EveryLayer().eval()
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = network(x).numpy()
    model = prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    session = onnxruntime.InferenceSession(write_float_onnx(model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, atol=1e-5)
