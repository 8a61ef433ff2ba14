import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from cpt_deploy.bundle import Bundle, TextProcessor
from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.bundle.processors.tokenization import ByteTokenizer, WordTokenizer
from cpt_deploy.bundle.runtime.sessions import open_session, session_options
from cpt_deploy.errors import BundleError, ConversionError, UsageError
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.export.language.kinds import language_signature, write_language_onnx
from cpt_deploy.integer.language import Trace, freeze_language_model, read_integer_model
from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.quantization import QuantizationConfig, prepare_language_model
from cpt_deploy.quantization.calibration.calibrate import calibrating
from cpt_deploy.validation.language.gate import LanguageReference
from cpt_deploy.validation.language.intermediate_outputs import with_product_outputs
from cpt_deploy.validation.language.measuring import chunks_of
from cpt_deploy.validation.language.validate import validate_language
from tests.unit.export.language.running import TextRuntime, empty_state

VOCABULARY, CONTEXT, LAYERS, HEADS, FEATURES, INNER = 37, 24, 2, 4, 32, 48
CUTOFFS = [7, 20]
NETWORKS = {
    "tied": {},
    "untied": {"tie_weights": False},
    "adaptive": {"cutoffs": CUTOFFS, "factor": 2.0},
    "untied adaptive": {"cutoffs": CUTOFFS, "factor": 2.0, "tie_weights": False},
}


def trained(max_bits=8, **args):
    torch.manual_seed(0)
    shape = {"features": FEATURES, "layers": LAYERS, "heads": HEADS, "inner": INNER, "context": CONTEXT}
    network = build_language_model("transformer-lm", VOCABULARY, **shape, dropout=0.0, **args)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "qkv" in name:
                parameter.mul_(4)  # attention that attends to something
    model = prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=max_bits))
    with torch.no_grad(), calibrating(model):
        for seed in range(3):
            model(tokens(4, 20, seed))
    return model.eval()


def tokens(rows, length, seed=9):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return trained(**NETWORKS[request.param])


@pytest.fixture(scope="module")
def frozen(model):
    return freeze_language_model(model)


@pytest.fixture(scope="module")
def runtime(frozen):
    return TextRuntime(write_language_onnx(frozen), language_signature(frozen))


def integers_of_runtime(frozen, given):
    content, names = with_product_outputs(write_language_onnx(frozen))
    assert names == tuple(linear.name for linear in frozen.linears())
    session = open_session(content)
    outputs = [output.name for output in session.get_outputs()]
    state = empty_state(language_signature(frozen), len(given))
    values = session.run(outputs, {"input_ids": given, **state})
    return {name.removeprefix("tap:"): value for name, value in zip(outputs, values, strict=True)}


@pytest.mark.parametrize(("max_bits", "weights", "activations"), [(8, None, None), (8, 5, 6), (6, None, None)])
@pytest.mark.parametrize("args", NETWORKS.values(), ids=NETWORKS)
def test_every_integer_of_the_runtime_follows_from_its_codes(max_bits, weights, activations, args):
    frozen = freeze_language_model(trained(max_bits, **args), weight_bits=weights, activation_bits=activations)
    found = integers_of_runtime(frozen, tokens(3, CONTEXT).numpy())
    compared = 0
    for linear in frozen.linears():
        codes, sums = found[f"{linear.name}.codes"], found[f"{linear.name}.sums"]
        assert codes.max() <= linear.qparams.quant_max
        np.testing.assert_array_equal(sums, (codes.astype(np.int64) - linear.qparams.zero_point) @ linear.codes.T)
        np.testing.assert_array_equal(sums, linear.accumulate(codes))
        compared += sums.size
    a_token = LAYERS * (3 * FEATURES + FEATURES + INNER + FEATURES) + VOCABULARY
    if "cutoffs" in args:
        a_token += 3 * FEATURES + 2 + FEATURES // 2 + FEATURES // 4  # projections; bands, and their two narrow layers
    assert compared == 3 * CONTEXT * a_token
    # The weights are those of the trained layers: codes of no more than the bits allow.
    most = {8: 127, 6: 31}[max_bits] if weights is None else 2 ** (weights - 1) - 1
    scheduled = [linear for linear in frozen.linears() if linear.name.startswith("blocks")]
    greatest = {int(np.abs(linear.codes.astype(int)).max()) for linear in scheduled}
    if most == 127:  # of 8 bits less where two large ones would saturate without VNNI
        assert min(greatest) >= 64
        assert max(greatest) <= most
    else:
        assert greatest == {most}


def test_executor_runtime_and_trained_model_agree(model, frozen):
    given = tokens(3, CONTEXT)
    trace = Trace()
    logits, state = frozen.run(given.numpy(), trace=trace)
    found = integers_of_runtime(frozen, given.numpy())
    assert set(trace.codes) == {linear.name for linear in frozen.linears()}
    for name, codes in trace.codes.items():
        difference = np.abs(codes.astype(int) - found[f"{name}.codes"])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3
    scale = np.abs(logits).max()
    np.testing.assert_allclose(found["logits"], logits, atol=5e-3 * scale)
    with torch.no_grad():
        expected, expected_state = model(given)
    row = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    torch.testing.assert_close(row, expected, atol=5e-3 * float(expected.abs().max()), rtol=0)
    assert len(state) == len(expected_state) == 2 * LAYERS
    for number, (own, theirs) in enumerate(zip(state, expected_state, strict=True)):
        assert own.shape == (3, HEADS, CONTEXT, FEATURES // HEADS)
        torch.testing.assert_close(torch.from_numpy(own), theirs, atol=0.03, rtol=0)
        name = f"{'kv'[number % 2]}_{number // 2}_after"
        np.testing.assert_allclose(found[name], own, atol=0.03)


@pytest.mark.parametrize("cuts", [list(range(1, CONTEXT)), [1, 2, 7], [20]], ids=["token by token", "parts", "two"])
def test_parts_are_the_whole(frozen, runtime, cuts):
    given = tokens(2, CONTEXT).numpy()
    whole, end = runtime.run(given)
    state, own, rows, executed = None, None, [], []
    for part in np.split(given, cuts, axis=1):
        logits, state = runtime.run(part, state)
        rows.append(logits)
        logits, own = frozen.run(part, own)
        executed.append(logits)
    scale = np.abs(whole).max()
    for parts in (rows, executed):
        difference = np.abs(np.concatenate(parts, axis=1) - whole)
        assert difference.max() < 5e-3 * scale  # a last place of a float can move a code
        assert difference.mean() < 3e-4 * scale
    for name, value in end.items():
        np.testing.assert_allclose(state[name], value, atol=0.03)
    for value, expected in zip(own, end.values(), strict=True):
        np.testing.assert_allclose(value, expected, atol=0.03)


def test_no_token_sees_a_later_one_and_each_sees_those_before(runtime):
    given = tokens(1, CONTEXT).numpy()
    changed = given.copy()
    changed[0, 10] = (changed[0, 10] + 1) % VOCABULARY
    before, after = runtime.run(given)[0][0], runtime.run(changed)[0][0]
    np.testing.assert_array_equal(before[:10], after[:10])
    assert (np.abs(before[10:] - after[10:]).max(axis=1) > 1e-3).all()


def test_the_graph_means_to_onnx_what_it_means_to_the_runtime(frozen, runtime):
    reference = ReferenceEvaluator(onnx.load_from_string(write_language_onnx(frozen)))
    given = tokens(2, CONTEXT).numpy()
    state, names = empty_state(runtime.signature, 2), [after for _, after in runtime.signature.states]
    rows = []
    for part in np.split(given, [9], axis=1):
        logits, *after = reference.run(["logits", *names], {"input_ids": part, **state})
        state = dict(zip(state, after, strict=True))
        rows.append(logits)
    expected = np.concatenate(rows, axis=1)
    np.testing.assert_allclose(runtime.run(given)[0], expected, atol=5e-3 * np.abs(expected).max())


def test_scores_with_bands_are_log_probabilities():
    frozen = freeze_language_model(trained(**NETWORKS["adaptive"]))
    runtime = TextRuntime(write_language_onnx(frozen), language_signature(frozen))
    given = np.arange(VOCABULARY)[None, :CONTEXT]  # tokens of all three bands, and at their edges
    for scores in (frozen.run(given)[0], runtime.run(given)[0]):
        np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=-1), 1, atol=1e-5)


def test_description_and_arrays_give_the_model_back(frozen):
    again = read_integer_model(frozen.describe(), frozen.arrays())
    given = tokens(2, 5).numpy()
    np.testing.assert_array_equal(again.run(given)[0], frozen.run(given)[0])
    assert again.describe() == frozen.describe()
    arrays = frozen.arrays()
    del arrays["norm.bias"]
    with pytest.raises(BundleError, match=r"norm\.bias"):
        read_integer_model(frozen.describe(), arrays)
    with pytest.raises(BundleError, match="rnn"):
        read_integer_model({"type": "rnn"}, {})


@pytest.mark.parametrize(("past", "length"), [(0, CONTEXT + 1), (CONTEXT - 1, 2), (CONTEXT, 1), (CONTEXT - 4, 9)])
def test_more_tokens_than_the_context_are_refused(model, frozen, runtime, past, length):
    given = tokens(1, past + length).numpy()
    state = own = None
    if past:
        _, state = runtime.run(given[:, :past])
        _, own = frozen.run(given[:, :past])
    message = f"at most {CONTEXT} tokens, the model's context, but got {past + length}"
    with pytest.raises(UsageError, match=message):
        frozen.run(given[:, past:], own)
    # The graph itself refuses as well: a place beyond the last is not read as another one.
    session = onnxruntime.InferenceSession(write_language_onnx(frozen), session_options(exact_sums=False))
    state = empty_state(language_signature(frozen), 1) if state is None else state
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"input_ids": given[:, past:], **state})


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ConversionError, match="at most 8 bits"):
        freeze_language_model(trained(max_bits=10))
    network = build_language_model("transformer-lm", VOCABULARY, features=FEATURES, heads=2, layers=1, inner=8)
    model = prepare_language_model(network, QuantizationConfig(min_bits=2, max_bits=8))
    with pytest.raises(ConversionError, match="ranges were observed"):
        freeze_language_model(model)
    model.network = torch.nn.Linear(2, 2)
    with pytest.raises(ConversionError, match="an integer form, but got Linear"):
        freeze_language_model(model)


def test_chunks_cover_each_target_once_and_begin_anew_at_the_context():
    rows = np.arange(200, dtype=np.int64).reshape(2, 100)
    seen, past = [], 0
    for given, targets, fresh in chunks_of(rows, 40):
        past = 0 if fresh else past
        past += given.shape[1]
        assert past <= 40
        np.testing.assert_array_equal(targets, given + 1)
        seen.append(targets[0])
    assert np.concatenate(seen).tolist() == list(range(1, 100))
    assert [fresh for *_, fresh in chunks_of(rows, 40)] == [True, False, True, False, True]
    assert [fresh for *_, fresh in chunks_of(rows)] == [True, False, False, False]


@pytest.mark.parametrize("args", [NETWORKS["tied"], NETWORKS["adaptive"]], ids=["softmax", "adaptive softmax"])
def test_a_bundle_is_exported_opened_and_validated(tmp_path, args):
    model = trained(**args)
    words = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    identity = ModelIdentity(
        "little", "transformer-lm", "text-generation", TextProcessor(words), facts={"dataset": "words"}
    )
    text = tokens(1, 900)[0].numpy()
    bundle = export_language_bundle(model, tmp_path / "bundle", identity, text)
    again = export_language_bundle(model, tmp_path / "again", identity, text)
    assert (bundle.path / "SHA256SUMS").read_bytes() == (again.path / "SHA256SUMS").read_bytes()
    opened = Bundle.open(bundle.path)
    assert context_of(opened.signature) == CONTEXT
    assert [before for before, _ in opened.signature.states] == ["k_0", "v_0", "k_1", "v_1"]
    assert "| context | 24 |" in (bundle.path / "README.md").read_text()

    def step(given, state):
        with torch.no_grad():
            scores, state = model(torch.from_numpy(given), state)
        return scores.numpy(), state

    report = validate_language(
        bundle, text, {"name": "words", "split": "test"}, trained=LanguageReference(step, text, words.to_json())
    )
    assert report.passed, report.reasons
    runtimes = {entry["name"]: entry for entry in report.content["runtimes"]}
    # Each stretch of the context is a text of its own, so the trained model can read them side by side.
    rows = torch.from_numpy(text[: 16 * 56].reshape(16, 56))
    losses = torch.cat(
        [model.score(rows[:, a:b], rows[:, a + 1 : b + 1]).losses for a, b in ((0, 24), (24, 48), (48, 55))]
    )
    assert runtimes["trained"]["loss"] == pytest.approx(float(losses.detach().double().mean()), rel=1e-4)
    assert runtimes["onnxruntime"]["perplexity"] == pytest.approx(runtimes["trained"]["perplexity"], rel=2e-3)
    assert runtimes["trained"]["tokens"] == 16 * 55
    assert report.content["integers"]["mismatching"] == 0 < report.content["integers"]["compared"]
    assert len(report.content["integers"]["products"]) == len(freeze_language_model(model).linears())


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"float32 \(N, T, 256\)"):
        export_language_bundle(
            trained(),
            tmp_path / "bundle",
            ModelIdentity("little", "lm", "text-generation", TextProcessor(ByteTokenizer())),
            tokens(1, 50)[0].numpy(),
        )
