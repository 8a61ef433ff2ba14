import numpy as np
import onnxruntime
import pytest
import torch

from cpt_deploy.bundle.language import LanguageModel
from cpt_deploy.errors import ConversionError
from cpt_deploy.export.language.lstm_onnx import lstm_manifest, write_lstm_onnx
from cpt_deploy.freezing.language import IntegerLstm, LstmTrace, freeze_lstm
from cpt_deploy.models.language.catalog import build_language_model
from cpt_deploy.quantization import QuantizationConfig, prepare_language_model
from cpt_deploy.quantization.settling import observing

VOCABULARY = 37


def trained(upper=8, **args):
    torch.manual_seed(0)
    network = build_language_model("lstm-lm", VOCABULARY, **{"embedding": 24, "hidden": 32, "dropout": 0.0, **args})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # gates that do something
    model = prepare_language_model(network, QuantizationConfig(lower=2, upper=upper))
    with torch.no_grad(), observing(model):
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
    session = onnxruntime.InferenceSession(write_lstm_onnx(frozen, taps=True), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    h, c = frozen.initial_state(len(given))
    return dict(zip(names, session.run(names, {"tokens": given, "h": h, "c": c}), strict=True))


@pytest.mark.parametrize(("upper", "weights", "activations"), [(8, None, None), (8, 5, 6), (6, None, None)])
@pytest.mark.parametrize("tied", [False, True])
def test_every_integer_of_the_runtime_follows_from_its_codes(upper, weights, activations, tied):
    model = trained(upper, **({"embedding": 32, "tie_weights": True} if tied else {}))
    frozen = freeze_lstm(model, weight_bits=weights, activation_bits=activations)
    given = tokens(3, 50).numpy()
    found = trace_of_runtime(frozen, given)
    compared = 0
    for linear in frozen.linears():
        codes, sums = found[f"{linear.name}.codes"], found[f"{linear.name}.sums"]
        assert codes.max() <= linear.grid.levels
        np.testing.assert_array_equal(sums, (codes.astype(np.int64) - linear.grid.zero_point) @ linear.codes.T)
        np.testing.assert_array_equal(sums, linear.accumulate(codes))
        compared += sums.size
    assert compared == 3 * 50 * (4 * (4 * 32) + VOCABULARY)
    np.testing.assert_array_equal(found["logits"], frozen.head.scaled(found[f"{frozen.head.name}.sums"]))


def test_executor_runtime_and_trained_model_agree(model, frozen):
    given = tokens(3, 50)
    trace = LstmTrace()
    logits, state = frozen.run(given.numpy(), trace=trace)
    found = trace_of_runtime(frozen, given.numpy())
    for name, codes in trace.codes.items():
        difference = np.abs(codes.astype(int) - found[f"{name}.codes"])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3 * np.abs(logits).max())
    np.testing.assert_allclose(found["h_after"], state[0], atol=1e-3)
    with torch.no_grad():
        expected, expected_state = model(given)
    row = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    torch.testing.assert_close(row, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(torch.from_numpy(state[1]), expected_state[1], atol=2e-3, rtol=1e-3)


def test_steps_are_the_whole(frozen):
    runtime = LanguageModel(write_lstm_onnx(frozen), lstm_manifest(frozen))
    given = tokens(2, 12).numpy()
    whole, end = runtime.run(given)
    state, rows = None, []
    for part in np.split(given, [1, 2, 7], axis=1):
        logits, state = runtime.run(part, state)
        rows.append(logits)
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), whole)
    for name in ("h", "c"):
        np.testing.assert_array_equal(state[name], end[name])


def test_optimizations_change_no_integer(frozen):
    content, manifest = write_lstm_onnx(frozen), lstm_manifest(frozen)
    given = tokens(2, 30).numpy()
    fused, plain = (LanguageModel(content, manifest, optimize=optimize).run(given)[0] for optimize in (True, False))
    np.testing.assert_allclose(fused, plain, atol=2e-3 * np.abs(plain).max())


def test_description_and_arrays_give_the_model_back(frozen):
    again = IntegerLstm.from_arrays(frozen.describe(), frozen.arrays())
    given = tokens(2, 5).numpy()
    np.testing.assert_array_equal(again.run(given)[0], frozen.run(given)[0])


def test_models_of_other_kinds_and_bits_are_refused():
    with pytest.raises(ConversionError, match="at most 8 bits"):
        freeze_lstm(trained(upper=10))
    network = build_language_model("lstm-lm", VOCABULARY, embedding=24, hidden=32)
    with pytest.raises(ConversionError, match="ranges were observed"):
        freeze_lstm(prepare_language_model(network, QuantizationConfig(lower=2, upper=8)))
