"""A bundle whose network computes in float between its layers: exported, tampered with, validated in onnxruntime."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, Preprocessing, compare_golden, read_golden
from cpt_deploy.bundle.bundle import check_parts
from cpt_deploy.errors import BundleError, ConversionError
from cpt_deploy.export import ModelIdentity, export_bundle
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.report import render_validation_page
from cpt_deploy.validation import compare_constants
from cpt_deploy.validation.integers.comparison import IntegerComparison
from cpt_deploy.validation.integers.integer_model import bundled_integer_model
from cpt_deploy.validation.integers.intermediate_outputs import IntermediateOutput, with_intermediate_outputs

pytestmark = pytest.mark.slow  # its model takes long; test_float_forms.py has one of all layers by default

LABELS = ("zero", "one", "two")
SHAPE = (1, 8, 8)
PROCESSOR = ImageProcessor(Preprocessing(1, (8, 8), mean=(0.5,), std=(0.25,)), LABELS)
IDENTITY = ModelIdentity("hybrid", "test", "image-classification", PROCESSOR)


def transformer() -> nn.Module:
    network = VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=3)
    network.conv_proj = nn.Conv2d(1, 16, 4, stride=4)
    nn.init.normal_(network.heads.head.weight)  # type: ignore[union-attr]
    return network


def prepared() -> QuantizedModel:
    torch.manual_seed(0)
    model = prepare(transformer(), torch.zeros(2, *SHAPE), QuantizationConfig())
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    calibrate(model, [torch.randn(64, *SHAPE)])
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> QuantizedModel:
    return prepared()


@pytest.fixture(scope="module")
def hybrid(trained: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("hybrid") / "bundle"
    return export_bundle(trained, path, IDENTITY, torch.randn(4, *SHAPE), formats=["pt2"])


@pytest.fixture(scope="module")
def report(validated, hybrid: Bundle, trained: QuantizedModel, images):
    def run(inputs):
        with torch.no_grad():
            return {"logits": trained(torch.from_numpy(inputs["image"])).numpy()}

    return validated(hybrid, images, trained=run, max_drop=5.0, require_exact=True)


def test_every_integer_is_recomputed_from_the_codes_at_its_entry(report, hybrid):
    assert report.passed, report.reasons
    assert report.mismatching_integers == 0
    compared = {tensor.name: tensor.values for tensor in report.tensors}
    entries = bundled_integer_model(hybrid).entries
    # the codes of the image and of the convolution, and the results of the four Linear layers of a block and the head
    assert len(compared) == 7
    assert not set(compared) & set(entries)
    tokens, samples = 5, 150
    assert sorted(compared.values()) == sorted(
        samples * size for size in (8 * 8, 3, 4 * 16, tokens * 16, tokens * 16, tokens * 32, tokens * 48)
    )
    assert {tensor.name for tensor in report.float_parts.free_running} >= set(entries)
    assert report.unoptimized_tensors is None


def test_the_report_says_what_is_in_float(report, hybrid):
    floats = report.float_parts
    assert floats.operators == {"add": 3, "layer_norm": 3, "scaled_dot_product_attention": 1, "gelu": 1}
    tokens, width = 5, 16
    layers = 4 * 16 * width + tokens * (3 * width**2 + width**2 + 2 * width * 32) + width * 3
    assert floats.integer_macs == layers
    assert floats.float_macs == 2 * tokens * tokens * width
    assert floats.integer_share == pytest.approx(layers / (layers + floats.float_macs))
    fields = report.to_dict()
    assert fields["float_parts"]["integer_share_of_macs"] == pytest.approx(floats.integer_share, abs=1e-6)
    page = render_validation_page(fields, LABELS)
    assert "Computed in float" in page
    assert "3 layer_norm" in page
    card = (hybrid.path / "README.md").read_text()
    assert "whose layers run on integers" in card
    assert "3 layer_norm" in card
    assert hybrid.quantization["float_parts"]["operators"] == floats.operators
    assert "LayerNormalization" in report.graph.float_operators


def test_further_formats_are_measured_too(report, hybrid):
    assert "pt2" in hybrid.formats
    assert "pt2" in {runtime.name for runtime in report.runtimes}


def test_a_format_that_would_fix_the_batch_size_is_refused(trained, tmp_path):
    with pytest.raises(ConversionError, match="TorchScript"):
        export_bundle(trained, tmp_path / "b", IDENTITY, torch.zeros(2, *SHAPE), formats=["torchscript"])
    assert not (tmp_path / "b").exists()


def constant_names(bundle: Bundle) -> list[str]:
    return [entry.name for entry in onnx.load(bundle.onnx_path).graph.initializer]


def test_each_edited_constant_of_a_layer_or_an_operator_in_float_is_named(hybrid, tmp_path, edited):
    assert compare_constants(hybrid).differences == ()
    names = constant_names(hybrid)
    product = next(name for name in names if name.endswith("mlp_0.weight_codes"))
    chosen = [product, product.replace("weight_codes", "bias"), product.replace("weight_codes", "weight_scales")]
    chosen += [name for name in names if name.startswith("constant_")]
    assert len(chosen) > 6
    for name in chosen:
        (difference,) = compare_constants(edited(hybrid, tmp_path / name, name)).differences
        assert difference.differing == 1, name


def test_an_edited_code_of_a_product_is_found_in_the_integers(validated, hybrid, tmp_path, images, edited):
    name = next(name for name in constant_names(hybrid) if name.endswith("mlp_0.weight_codes"))
    report = validated(edited(hybrid, tmp_path / "edited", name), images, require_exact=True)
    assert not report.passed
    assert report.first_difference.name == name.removesuffix(".weight_codes")
    # downstream integers follow from the codes that the edited file had, so that only the edited layer differs
    assert [tensor.name for tensor in report.tensors if tensor.mismatches] == [report.first_difference.name]
    assert report.first_difference.worst_difference >= 1


def test_what_comes_of_an_entry_that_is_not_given_is_left_out(hybrid):
    model = bundled_integer_model(hybrid)
    inputs = {"image": np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)}
    codes = model.run(inputs).integers
    given = {name: codes[name] for name in model.entries}
    everything = model.follow(inputs, given).integers
    assert len(everything) == 7
    missing = model.entries[2]
    rest = model.follow(inputs, {name: values for name, values in given.items() if name != missing}).integers
    assert len(rest) == 6
    assert set(rest) < set(everything)


def test_layers_with_real_results_become_visible_without_changing_what_runs(hybrid):
    model = bundled_integer_model(hybrid)
    observable = with_intermediate_outputs(hybrid.onnx_path.read_bytes(), products=model.products)
    assert observable.hidden == ()
    assert set(model.products) <= {intermediate.name for intermediate in observable.intermediates}
    inputs = {"image": np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)}
    traced = OnnxRuntimeModel(observable.model, hybrid.signature).trace(inputs)
    assert all(traced[name].dtype == np.float32 for name in model.products)
    assert np.array_equal(traced["logits"], OnnxRuntimeModel(hybrid.onnx_path).run(inputs)["logits"])


def test_real_results_are_compared_as_numbers_in_units_of_the_sum():
    comparison = IntegerComparison([IntermediateOutput("product", "MatMul")], {"product": 0.25})
    expected = np.array([1.0, 2.0, 3.0], np.float32)
    comparison.add({"product": expected}, {"product": expected})
    comparison.add({"product": expected}, {"product": np.array([1.0, 2.0000002, 4.0], np.float32)})
    comparison.add({"product": expected}, {"product": np.array([1.0, 2.0, np.nan], np.float32)})
    (result,) = comparison.results()
    assert (result.values, result.mismatches) == (9, 3)
    assert result.worst_difference == 2**31


def test_the_golden_sample_has_a_tolerance_and_survives_the_file(hybrid):
    golden = hybrid.golden
    logits = golden.outputs["logits"]
    read = read_golden(golden.to_bytes())
    assert np.array_equal(read.outputs["logits"], logits)
    assert read.tolerance == golden.tolerance > 0
    assert OnnxRuntimeModel(hybrid.onnx_path).reproduce_golden(golden).reproduced
    near, far = (logits + np.float32(factor * golden.tolerance) for factor in (0.9, 1.1))
    assert compare_golden(golden, {"logits": near}).reproduced
    check = compare_golden(golden, {"logits": far})
    assert (check.reproduced, check.mismatches, check.values) == (False, far.size, far.size)
    assert "±" in check.what
    lost = logits.copy()
    lost[0, 0] = np.nan
    assert compare_golden(golden, {"logits": lost}).mismatches == 1
    with pytest.raises(ValueError, match="shape"):
        compare_golden(golden, {"logits": logits[:1]})


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {"logits": np.full((4, 3), np.inf, np.float32)}},
        {"tolerances": {"logits": -1.0}},
        {"tolerances": {"logits": float("nan")}},
    ],
)
def test_unfit_golden_logits_are_refused(hybrid, change):
    with pytest.raises(ValueError, match="Expected"):
        replace(hybrid.golden, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {"logits": np.zeros((1, 3), np.float32)}},
        {"inputs": {"image": np.zeros((3, 1, 8, 8), np.float32)}},
    ],
)
def test_golden_samples_have_as_many_rows_of_each_tensor(hybrid, change):
    with pytest.raises(ValueError, match="equally many rows"):
        check_parts(hybrid.signature, hybrid.processor, replace(hybrid.golden, **change))


def test_labels_have_to_fit_real_logits_too(trained, tmp_path):
    two = ImageProcessor(PROCESSOR.preprocessing, ("one", "two"))
    with pytest.raises(BundleError, match="one for each label"):
        export_bundle(trained, tmp_path / "b", replace(IDENTITY, processor=two), torch.zeros(1, *SHAPE))
    assert not (tmp_path / "b").exists()


def test_a_damaged_description_of_the_float_parts_is_one_line(validated, hybrid, images):
    damaged = replace(hybrid, quantization={**hybrid.quantization, "float_parts": {"operators": 3}})
    with pytest.raises(BundleError, match="float parts"):
        validated(damaged, images, limit=2)
