"""Layers of different bits: their codes, the types that hold them in the file, and the integers that come out."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from cpt_deploy.bundle import TextProcessor
from cpt_deploy.bundle.processors.tokenization import WordTokenizer
from cpt_deploy.bundle.runtime.sessions import open_session, session_options
from cpt_deploy.errors import UsageError
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.export.language.kinds import language_signature, write_language_onnx
from cpt_deploy.integer.language import freeze_language_model
from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.quantization import QuantizationConfig, prepare_language_model
from cpt_deploy.quantization.calibration.calibrate import calibrating
from cpt_deploy.validation.language.intermediate_outputs import with_product_outputs
from cpt_deploy.validation.language.validate import validate_language
from tests.unit.export.language.running import TextRuntime, empty_state

VOCABULARY = 41
NETWORKS = {
    "lstm": ("lstm-lm", {"embedding": 24, "hidden": 32}),
    "transformer": ("transformer-lm", {"features": 32, "layers": 2, "inner": 48, "context": 24}),
    "adaptive": ("transformer-lm", {"features": 32, "layers": 1, "inner": 48, "context": 24, "cutoffs": [9, 20]}),
}


def tokens(rows, length, seed=9):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    name, args = NETWORKS[request.param]
    network = build_language_model(name, VOCABULARY, **args, dropout=0.0)
    model = prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=8, ends="scheduled"))
    with torch.no_grad(), calibrating(model):
        for seed in range(3):
            model(tokens(4, 20, seed))
    return model.eval()


@pytest.fixture(scope="module")
def allocation(model):
    """Bits that go round through the layers."""
    return {layer.name: (2, 4, 8, 3, 6)[place % 5] for place, layer in enumerate(model.layers())}


@pytest.fixture(scope="module")
def frozen(model, allocation):
    return freeze_language_model(model, weight_bits=allocation)


def parts(frozen):
    return {part.name: part for part in (*frozen.tables(), *frozen.linears())}


def initializers(graph):
    """Those of a graph and of the bodies inside of it."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.name == "body"]
    return [*graph.initializer, *(entry for body in bodies for entry in initializers(body))]


def nodes(graph):
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.name == "body"]
    return [*graph.node, *(node for body in bodies for node in nodes(body))]


def test_each_layer_has_the_codes_of_its_bits(model, allocation, frozen):
    assert set(parts(frozen)) == set(allocation)
    for name, part in parts(frozen).items():
        layer = model.network.get_submodule(name)
        weight = layer.weight.detach().numpy()
        quant_max = layer.limited_quant_max(
            torch.tensor(float(2 ** (allocation[name] - 1) - 1)), layer.channel_weight
        ).numpy()
        scales = np.abs(weight).max(axis=1, keepdims=True) / np.atleast_1d(quant_max)[:, None]
        np.testing.assert_array_equal(part.codes, np.rint(weight / scales))
        assert part.bits == allocation[name]


def test_layers_that_are_not_named_have_the_upper_bound(model):
    first = model.layers()[0].name
    bits = {name: part.bits for name, part in parts(freeze_language_model(model, weight_bits={first: 3})).items()}
    assert bits.pop(first) == 3
    assert set(bits.values()) == {8}


@pytest.mark.parametrize(("opset", "types"), [(19, {}), (21, {2: "INT4"}), (24, {2: "INT4"}), (25, {2: "INT2"})])
def test_codes_take_the_smallest_type_of_the_opset(frozen, allocation, opset, types):
    file = onnx.load_from_string(write_language_onnx(frozen, opset=opset))
    assert [entry.version for entry in file.opset_import] == [opset]
    found = {entry.name: TensorProto.DataType.Name(entry.data_type) for entry in initializers(file.graph)}
    for name, bits in allocation.items():
        packed = types.get(bits, "INT4") if bits <= 4 and types else None
        assert found.get(f"{name}.weight.packed") == packed
        assert found.get(f"{name}.weight") == (None if packed else "INT8")


def test_the_least_opset_is_chosen_that_packs_most(model, frozen):
    def opset_of(content):
        return onnx.load_from_string(content).opset_import[0].version

    assert opset_of(write_language_onnx(frozen)) == 25
    for bits, opset in ((8, 19), (5, 19), (4, 21), (3, 21), (2, 25)):
        assert opset_of(write_language_onnx(freeze_language_model(model, weight_bits=bits))) == opset
    for opset in (18, 26):
        with pytest.raises(UsageError, match="from 19 to 25"):
            write_language_onnx(frozen, opset=opset)


@pytest.mark.parametrize("opset", [19, 21, 25])
def test_every_integer_of_the_runtime_follows_from_its_codes(frozen, opset):
    content, names = with_product_outputs(write_language_onnx(frozen, opset=opset))
    session = open_session(content)
    outputs = [output.name for output in session.get_outputs()]
    given = {"input_ids": tokens(3, 20).numpy(), **empty_state(language_signature(frozen), 3)}
    found = dict(zip(outputs, session.run(outputs, given), strict=True))
    assert names == tuple(linear.name for linear in frozen.linears())
    for linear in frozen.linears():
        codes, sums = (found[f"tap:{linear.name}.{kind}"] for kind in ("codes", "sums"))
        np.testing.assert_array_equal(sums, (codes.astype(np.int64) - linear.qparams.zero_point) @ linear.codes.T)


def test_packed_files_are_smaller_and_give_the_same_logits(frozen):
    files = [write_language_onnx(frozen, opset=opset) for opset in (19, 21, 25)]
    assert len(files[0]) > len(files[1]) > len(files[2])
    given = tokens(2, 15).numpy()
    logits = [TextRuntime(content, language_signature(frozen)).run(given)[0] for content in files]
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


def test_packed_codes_are_unpacked_when_the_file_is_loaded(frozen, tmp_path):
    import onnxruntime

    options = session_options(exact_sums=False)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(write_language_onnx(frozen), options)
    left = nodes(onnx.load(tmp_path / "optimized.onnx").graph)
    assert not [node.name for node in left if node.op_type == "Cast" and node.attribute[0].i == TensorProto.INT8]


def test_onnx_itself_runs_the_packed_file(frozen):
    content = write_language_onnx(frozen)
    file = onnx.load_from_string(content)
    assert {node.domain for node in nodes(file.graph)} == {""}
    signature, given = language_signature(frozen), tokens(2, 6).numpy()
    expected = TextRuntime(content, signature).run(given)[0]
    reference = ReferenceEvaluator(file).run(["logits"], {"input_ids": given, **empty_state(signature, 2)})[0]
    np.testing.assert_allclose(reference, expected, atol=2e-3 * np.abs(expected).max())


def test_a_bundle_of_mixed_widths_tells_them_and_is_valid(model, allocation, tmp_path):
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    text = tokens(1, 400)[0].numpy()
    identity = ModelIdentity("mixed", "some-lm", "text-generation", TextProcessor(words))
    bundle = export_language_bundle(model, tmp_path / "bundle", identity, text, weight_bits=allocation)
    sizes = {layer.name: layer.weights for layer in model.layers()}
    mean = sum(allocation[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert bundle.facts["weight_bits"] == pytest.approx(mean, abs=0.005)
    assert bundle.facts["opset"] == 25
    assert f"| weight bits | {bundle.facts['weight_bits']} |" in (bundle.path / "README.md").read_text()
    weights = json.loads((bundle.path / "quantization.json").read_text())["weights"]
    assert {entry["layer"]: entry["bits"] for entry in weights} == allocation
    report = validate_language(bundle, text, {"name": "words", "split": "test"})
    assert report.passed, report.reasons
    assert report.content["integers"]["mismatching"] == 0 < report.content["integers"]["compared"]
