import hashlib
import json

import numpy as np
import onnx
import pytest
import torch

from cpt_deploy.bundle import Bundle, ImageProcessor, TextProcessor, require_evidence, update_validation
from cpt_deploy.bundle.processors.tokenization import WordTokenizer
from cpt_deploy.bundle.runtime.sessions import may_saturate, open_session
from cpt_deploy.errors import BundleError, ConversionError, ValidationFailedError
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.export.language.lstm_onnx import lstm_signature, write_lstm_onnx
from cpt_deploy.integer.language import IntegerLstm, Trace, freeze_lstm
from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.quantization import QuantizationConfig, prepare_language_model
from cpt_deploy.quantization.calibration.calibrate import calibrating
from cpt_deploy.validation.language.gate import LanguageReference
from cpt_deploy.validation.language.intermediate_outputs import with_product_outputs
from cpt_deploy.validation.language.measuring import rows_of
from cpt_deploy.validation.language.validate import validate_language
from tests.unit.export.language.running import TextRuntime, empty_state

VOCABULARY = 37


def trained(max_bits=8, **args):
    torch.manual_seed(0)
    network = build_language_model("lstm-lm", VOCABULARY, **{"embedding": 24, "hidden": 32, "dropout": 0.0, **args})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # gates that do something
    model = prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=max_bits))
    with torch.no_grad(), calibrating(model):
        for seed in range(3):
            model(tokens(4, 20, seed))
    return model.eval()


def tokens(rows, length, seed=9):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def frozen(model):
    return freeze_lstm(model)


def trace_of_runtime(frozen, given):
    content, names = with_product_outputs(write_lstm_onnx(frozen))
    assert names == tuple(linear.name for linear in frozen.linears())
    session = open_session(content)
    outputs = [output.name for output in session.get_outputs()]
    values = session.run(outputs, {"input_ids": given, **empty_state(lstm_signature(frozen), len(given))})
    return {name.removeprefix("tap:"): value for name, value in zip(outputs, values, strict=True)}


@pytest.mark.parametrize(("max_bits", "weights", "activations"), [(8, None, None), (8, 5, 6), (6, None, None)])
@pytest.mark.parametrize("tied", [False, True])
def test_every_integer_of_the_runtime_follows_from_its_codes(max_bits, weights, activations, tied):
    model = trained(max_bits, **({"embedding": 32, "tie_weights": True} if tied else {}))
    frozen = freeze_lstm(model, weight_bits=weights, activation_bits=activations)
    given = tokens(3, 50).numpy()
    found = trace_of_runtime(frozen, given)
    compared = 0
    for linear in frozen.linears():
        codes, sums = found[f"{linear.name}.codes"], found[f"{linear.name}.sums"]
        assert codes.max() <= linear.qparams.quant_max
        np.testing.assert_array_equal(sums, (codes.astype(np.int64) - linear.qparams.zero_point) @ linear.codes.T)
        np.testing.assert_array_equal(sums, linear.accumulate(codes))
        compared += sums.size
    assert compared == 3 * 50 * (4 * (4 * 32) + VOCABULARY)
    np.testing.assert_array_equal(found["logits"], frozen.head.scaled(found[f"{frozen.head.name}.sums"]))


def test_executor_runtime_and_trained_model_agree(model, frozen):
    given = tokens(3, 50)
    trace = Trace()
    logits, state = frozen.run(given.numpy(), trace=trace)
    found = trace_of_runtime(frozen, given.numpy())
    for name, codes in trace.codes.items():
        difference = np.abs(codes.astype(int) - found[f"{name}.codes"])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3 * np.abs(logits).max())
    np.testing.assert_allclose(found["h_after"], state[0].swapaxes(0, 1), atol=1e-3)
    with torch.no_grad():
        expected, expected_state = model(given)
    row = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    torch.testing.assert_close(row, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(torch.from_numpy(state[1]), expected_state[1], atol=2e-3, rtol=1e-3)


def test_steps_are_the_whole(frozen):
    runtime = TextRuntime(write_lstm_onnx(frozen), lstm_signature(frozen))
    given = tokens(2, 12).numpy()
    whole, end = runtime.run(given)
    state, rows = None, []
    for part in np.split(given, [1, 2, 7], axis=1):
        logits, state = runtime.run(part, state)
        rows.append(logits)
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), whole)
    for name in ("h", "c"):
        np.testing.assert_array_equal(state[name], end[name])


@pytest.mark.skipif(may_saturate(), reason="without optimizations onnxruntime saturates on this processor")
def test_optimizations_change_no_integer(frozen):
    content, signature = write_lstm_onnx(frozen), lstm_signature(frozen)
    given = tokens(2, 30).numpy()
    fused, plain = (TextRuntime(content, signature, optimize=optimize).run(given)[0] for optimize in (True, False))
    np.testing.assert_allclose(fused, plain, atol=2e-3 * np.abs(plain).max())


def test_description_and_arrays_give_the_model_back(frozen):
    again = IntegerLstm.from_arrays(frozen.describe(), frozen.arrays())
    given = tokens(2, 5).numpy()
    np.testing.assert_array_equal(again.run(given)[0], frozen.run(given)[0])


def test_models_of_other_kinds_and_bits_are_refused():
    with pytest.raises(ConversionError, match="at most 8 bits"):
        freeze_lstm(trained(max_bits=10))
    network = build_language_model("lstm-lm", VOCABULARY, embedding=24, hidden=32)
    with pytest.raises(ConversionError, match="ranges were observed"):
        freeze_lstm(prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=8)))


def test_a_bundle_is_exported_opened_and_validated(model, tmp_path):
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    identity = ModelIdentity("little", "lstm-lm", "text-generation", TextProcessor(words), facts={"dataset": "words"})
    text = tokens(1, 500)[0].numpy()
    bundle = export_language_bundle(model, tmp_path / "bundle", identity, text)
    again = export_language_bundle(model, tmp_path / "again", identity, text)
    assert (bundle.path / "SHA256SUMS").read_bytes() == (again.path / "SHA256SUMS").read_bytes()
    assert Bundle.open(bundle.path).name == "little"
    with pytest.raises(BundleError, match="is for text-generation"):
        bundle.expect_processor(ImageProcessor)

    def trained(given, state):
        with torch.no_grad():
            scores, state = model(torch.from_numpy(given), state)
        return scores.numpy(), state

    report = validate_language(
        bundle, text, {"name": "words", "split": "test"}, trained=LanguageReference(trained, text, words.to_json())
    )
    assert report.passed, report.reasons
    runtimes = {entry["name"]: entry for entry in report.content["runtimes"]}
    assert runtimes["onnxruntime"]["perplexity"] == pytest.approx(runtimes["trained"]["perplexity"], rel=2e-3)
    rows = torch.from_numpy(rows_of(text, 16))
    with torch.no_grad():
        losses, count = model.score(rows[:, :-1], rows[:, 1:])[::2]
    assert runtimes["trained"]["loss"] == pytest.approx(float(losses.double().mean()), rel=1e-5)
    assert runtimes["trained"]["tokens"] == count
    assert report.content["integers"]["mismatching"] == 0
    assert report.content["integers"]["compared"] == count * (4 * (4 * 32) + VOCABULARY)
    updated = update_validation(bundle, report.content, report.results)
    assert require_evidence(updated).compared_integers == report.content["integers"]["compared"]
    assert "Perplexity (onnxruntime)" in (updated.path / "README.md").read_text()


def test_a_wrong_integer_is_found(model, tmp_path):
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    text = tokens(1, 200)[0].numpy()
    identity = ModelIdentity("little", "lstm-lm", "text-generation", TextProcessor(words))
    bundle = export_language_bundle(model, tmp_path / "bundle", identity, text)
    content = onnx.load(bundle.onnx_path)
    body = next(node for node in content.graph.node if node.op_type == "Scan").attribute[0].g
    weight = next(entry for entry in body.initializer if entry.name.endswith(".weight"))
    codes = onnx.numpy_helper.to_array(weight).copy()
    codes[3, 5] += 1 if codes[3, 5] < 127 else -1
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, weight.name))
    onnx.save(content, bundle.onnx_path)
    report = validate_language(bundle, text, {"name": "words", "split": "test"})
    assert not report.passed
    assert "integers differ" in report.reasons[0]


LENGTH = 300


@pytest.fixture
def little(model, tmp_path):
    """A bundle, and what changes a JSON file of it with checksums that hold."""
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    text = tokens(1, LENGTH)[0].numpy()
    identity = ModelIdentity("little", "lstm-lm", "text-generation", TextProcessor(words))
    bundle = export_language_bundle(model, tmp_path / "bundle", identity, text)

    def change(name, edit):
        path = bundle.path / name
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        sums = bundle.path / "SHA256SUMS"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [f"{digest}  {name}" if line.endswith(f"  {name}") else line for line in sums.read_text().splitlines()]
        sums.write_text("\n".join(lines) + "\n")
        return Bundle.open(bundle.path)

    return bundle, change


def reasons_of(bundle, **options):
    text = tokens(1, LENGTH)[0].numpy()
    return validate_language(bundle, text, {"name": "words", "split": "test"}, **options).reasons


def test_what_export_announces_is_what_onnxruntime_computes_in_float(little):
    bundle, _ = little
    assert bundle.quantization["onnxruntime"]["float_operators"]["Sigmoid"] == 6  # three gates of two layers, in Scans
    assert reasons_of(bundle) == []


def swap_words(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]


EDITS = {
    "a word's number": ("tokenizer.json", swap_words, "tokenizer.json is not the exported one"),
    "which state is which": (
        "config.json",
        lambda content: content["cpt"]["signature"].update(states=[["h", "c_after"], ["c", "h_after"]]),
        "the signature in config.json is not that of the graph",
    ),
    "the vocabulary of others": ("config.json", lambda content: content.update(vocab_size=5), "vocab_size"),
    "what was announced": (
        "quantization.json",
        lambda content: content["onnxruntime"]["float_operators"].pop("Tanh"),
        "computes 4 Tanh in float, which was not announced",
    ),
}


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_file_fails_though_its_checksum_holds(little, edit):
    bundle, change = little
    before = bundle.content_sha256
    name, what, reason = EDITS[edit]
    edited = change(name, what)
    assert any(reason in found for found in reasons_of(edited))
    assert edited.content_sha256 != before


def test_another_context_than_the_integer_models_is_refused(little):
    _, change = little
    edited = change("config.json", lambda content: content["cpt"]["signature"]["free"]["length"].update(most=20))
    with pytest.raises(ValidationFailedError, match="context of None, but got 20"):
        reasons_of(edited)


def test_another_tokenizer_than_the_runs_fails_and_perplexities_are_told(little, model):
    bundle, _ = little
    other = WordTokenizer(["<unk>", "<eos>", *(f"w{number}" for number in range(VOCABULARY - 2))])

    def step(given, state):
        with torch.no_grad():
            scores, state = model(torch.from_numpy(given), state)
        return scores.numpy(), state

    text = tokens(1, LENGTH)[0].numpy()
    same = LanguageReference(step, text, bundle.processor.tokenizer.to_json(), "the run", (30.0, 30.1))
    assert reasons_of(bundle, trained=same) == []
    exchanged = LanguageReference(step, text[::-1].copy(), other.to_json(), "the run")
    assert "tokenizer.json is not that of the run" in reasons_of(bundle, trained=exchanged)
    worse = LanguageReference(step, text, bundle.processor.tokenizer.to_json(), "the run", (30.0, 40.0))
    assert reasons_of(bundle, trained=worse) == [
        "the trained model has a perplexity of 40 here, but 30 by its own report"
    ]


def test_what_is_lost_from_a_better_model_is_judged_by_blocks(little, model):
    bundle, _ = little

    text = tokens(1, LENGTH)[0].numpy()
    rows = torch.from_numpy(rows_of(text, 16))

    def gain(nats):
        """A model that likes what comes next better, by adding to its logit."""
        number = [0]

        def step(given, state):
            with torch.no_grad():
                scores, state = model(torch.from_numpy(given), state)
            scores = torch.log_softmax(scores, -1)
            start = number[0]
            number[0] += given.shape[1]
            targets = rows[:, start + 1 : start + 1 + given.shape[1], None]
            return scores.scatter_add(-1, targets, torch.full(targets.shape, nats)).numpy(), state

        return step

    tokenizer = bundle.processor.tokenizer.to_json()
    reference = LanguageReference(gain(0.5), text, tokenizer)
    (reason,) = reasons_of(bundle, trained=reference)
    assert reason.startswith("perplexity rose by")
    assert reasons_of(bundle, trained=LanguageReference(gain(0.5), text, tokenizer), max_rise=None) == []
