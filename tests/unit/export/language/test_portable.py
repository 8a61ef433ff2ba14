"""Portable language models: their sums are exact in onnxruntime's fast kernels on any processor."""

import numpy as np
import onnxruntime
import pytest
import torch

from cpt_deploy.bundle import TextProcessor
from cpt_deploy.bundle.processors.tokenization import WordTokenizer
from cpt_deploy.bundle.runtime.sessions import may_saturate, needs_exact_sums, session_options
from cpt_deploy.errors import BundleError
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.export.language.kinds import language_signature, write_language_onnx
from cpt_deploy.integer.language import freeze_language_model
from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.quantization import QuantizationConfig, make_native, prepare_language_model, reduced_layers
from cpt_deploy.quantization.calibration.calibrate import calibrating
from cpt_deploy.validation import bundle_saturation
from cpt_deploy.validation.language.intermediate_outputs import with_product_outputs
from cpt_deploy.validation.language.validate import validate_language
from tests.unit.export.language.running import empty_state

VOCABULARY = 41
NETWORKS = {
    "lstm": ("lstm-lm", {"embedding": 32, "hidden": 32, "tie_weights": True}),
    "transformer": ("transformer-lm", {"features": 32, "layers": 1, "inner": 48, "context": 24}),
    "adaptive": ("transformer-lm", {"features": 32, "layers": 1, "inner": 48, "context": 24, "cutoffs": [9, 20]}),
}


def tokens(rows, length, seed=9):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def trained(kind, *, portable):
    torch.manual_seed(0)
    name, args = NETWORKS[kind]
    network = build_language_model(name, VOCABULARY, **args, dropout=0.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    model = prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=8))
    if not portable:
        make_native(model)
    with torch.no_grad(), calibrating(model):
        for seed in range(3):
            model(tokens(4, 20, seed))
    return model.eval()


@pytest.fixture(params=NETWORKS)
def kind(request):
    return request.param


def wrong_sums_of_the_fast_kernels(frozen, *, optimize):
    content, names = with_product_outputs(write_language_onnx(frozen))
    session = onnxruntime.InferenceSession(content, session_options(exact_sums=False, optimize=optimize))
    outputs = [f"tap:{name}.{part}" for name in names for part in ("codes", "sums")]
    given = {"input_ids": tokens(4, 20).numpy(), **empty_state(language_signature(frozen), 4)}
    found = dict(zip(outputs, session.run(outputs, given), strict=True))
    return sum(
        int((linear.accumulate(found[f"tap:{linear.name}.codes"]) != found[f"tap:{linear.name}.sums"]).sum())
        for linear in frozen.linears()
    )


def worst_pair_sum(codes):
    """The greatest sum of two codes of one sign in a row."""
    ordered = np.sort(codes.astype(int), axis=1)
    return max(int(ordered[:, -2:].clip(min=0).sum(axis=1).max()), int((-ordered[:, :2]).clip(min=0).sum(axis=1).max()))


@pytest.mark.parametrize("optimize", [True, False])
def test_no_sum_of_a_portable_model_is_wrong_in_fast_kernels(kind, optimize):
    assert wrong_sums_of_the_fast_kernels(freeze_language_model(trained(kind, portable=True)), optimize=optimize) == 0


@pytest.mark.skipif(not may_saturate(), reason="sums are exact in all kernels of this processor")
def test_sums_of_another_model_are_wrong_there(kind):
    assert wrong_sums_of_the_fast_kernels(freeze_language_model(trained(kind, portable=False)), optimize=True) > 0


def test_no_pair_of_codes_leaves_16_bits_and_rows_of_tokens_keep_their_codes(kind):
    plain, portable = (freeze_language_model(trained(kind, portable=wanted)) for wanted in (False, True))
    assert max(worst_pair_sum(linear.codes) for linear in plain.linears()) * 255 > 2**15 - 1
    for linear in portable.linears():
        assert worst_pair_sum(linear.codes) * 255 <= 2**15 - 1
        assert linear.bits == 8
    for before, after in zip(plain.tables(), portable.tables(), strict=True):
        np.testing.assert_array_equal(before.codes, after.codes)


def test_weights_of_fewer_bits_lose_nothing(kind):
    plain, portable = (trained(kind, portable=wanted) for wanted in (False, True))
    names = [layer.name for layer in plain.layers()]
    allocation = dict.fromkeys(names, 7)
    assert reduced_layers(portable, allocation) == []
    pairs = zip(
        *(freeze_language_model(model, weight_bits=allocation).linears() for model in (plain, portable)), strict=True
    )
    assert all(np.array_equal(before.codes, after.codes) for before, after in pairs)


def test_the_trained_model_has_the_reduced_codes_too(kind):
    model = trained(kind, portable=True)
    given = tokens(3, 20)
    with torch.no_grad():
        expected = model(given)[0]
    logits = torch.from_numpy(freeze_language_model(model).run(given.numpy())[0])
    row = torch.log_softmax(logits, dim=-1)
    torch.testing.assert_close(row, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


def exported(model, path, bits=None, **facts):
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    identity = ModelIdentity("little", "some-lm", "text-generation", TextProcessor(words), facts=facts)
    return export_language_bundle(model, path, identity, tokens(1, 300)[0].numpy(), weight_bits=bits)


def test_a_portable_bundle_says_so_and_is_valid(kind, tmp_path):
    model = trained(kind, portable=True)
    reduced = [
        {"layer": entry.layer, "channels": entry.channels, "reduced_channels": entry.reduced_channels,
         "min_quant_max": entry.min_quant_max}
        for entry in reduced_layers(model)
    ]  # fmt: skip
    assert reduced
    bundle = exported(model, tmp_path / "bundle")
    assert not needs_exact_sums(bundle.onnx_path)
    report = validate_language(bundle, tokens(1, 300)[0].numpy(), {"name": "words", "split": "test"})
    assert report.passed, report.reasons
    assert report.content["integers"]["mismatching"] == 0
    assert report.content["portability"]["reduced"] == tuple(reduced)
    assert not report.content["saturation"]["possible_without_vnni"]
    names = [linear.name for linear in freeze_language_model(model).linears()]
    assert [layer["name"] for layer in report.content["saturation"]["layers"]] == names


def test_a_bundle_that_only_claims_to_be_portable_does_not_pass(kind, tmp_path):
    bundle = exported(trained(kind, portable=False), tmp_path / "bundle", portable=True, reduced_layers=[])
    assert needs_exact_sums(bundle.onnx_path) == may_saturate()
    assert any(layer.possible for layer in bundle_saturation(bundle))
    text = tokens(1, 300)[0].numpy()
    report = validate_language(bundle, text, {"name": "words", "split": "test"}, require_exact=False)
    assert not report.passed
    assert "can saturate" in report.reasons[-1]
    damaged = exported(trained(kind, portable=True), tmp_path / "damaged", reduced_layers=None)
    with pytest.raises(BundleError, match="reduced_layers"):
        validate_language(damaged, text, {"name": "words", "split": "test"})


def test_a_bundle_of_7_bits_has_fast_kernels_too(kind, tmp_path):
    model = trained(kind, portable=False)
    bundle = exported(model, tmp_path / "bundle", bits={layer.name: 7 for layer in model.layers()})
    assert not needs_exact_sums(bundle.onnx_path)
    assert not any(layer.possible for layer in bundle_saturation(bundle))
    text = tokens(1, 300)[0].numpy()
    report = validate_language(bundle, text, {"name": "words", "split": "test"})
    assert report.passed, report.reasons
    assert report.content["integers"]["mismatching"] == 0


def test_another_bundle_is_said_to_need_exact_kernels(kind, tmp_path):
    bundle = exported(trained(kind, portable=False), tmp_path / "bundle")
    assert needs_exact_sums(bundle.onnx_path) == may_saturate()
    report = validate_language(bundle, tokens(1, 300)[0].numpy(), {"name": "words", "split": "test"})
    assert report.passed
    assert report.content["portability"] is None
    assert report.content["saturation"]["possible_without_vnni"]
