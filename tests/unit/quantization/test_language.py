"""Language models, prepared as any network: what they compute, whom their layers belong to, and what is refused."""

import copy
import functools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models.language import (
    LstmLanguageModel,
    TransformerLanguageModel,
    build_language_model,
    describe_language_model,
    preparing_arguments,
)
from cpt_deploy.quantization import QuantizationConfig, calibrate, measure_sensitivity, prepare
from cpt_deploy.quantization.conversion.comparison.running import float_bits
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding
from cpt_deploy.quantization.numerics.affine import quantize, quantize_weight
from cpt_deploy.quantization.stateful import call_with_state, carries_state, initial_state
from cpt_deploy.signature import TOKENS_NAME


class Stateless(nn.Module):
    """A user's model of the next token after one, which has no state."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 12)
        self.inner = nn.Linear(12, 24)
        self.scores = nn.Linear(24, 50)

    def forward(self, input_ids):
        return self.scores(torch.tanh(self.inner(self.tokens(input_ids))))


SMALL = {"features": 32, "layers": 2, "heads": 2, "inner": 48, "context": 16, "dropout": 0.0}
NETWORKS = {
    "lstm": lambda: LstmLanguageModel(50, embedding=12, hidden=20, layers=2, dropout=0.0),
    "tied lstm": lambda: LstmLanguageModel(50, embedding=20, hidden=20, layers=2, dropout=0.0, tie_weights=True),
    "small lstm": lambda: LstmLanguageModel(50, embedding=12, hidden=20, layers=1, dropout=0.0),
    "transformer": lambda: TransformerLanguageModel(50, **SMALL),
    "adaptive transformer": lambda: TransformerLanguageModel(50, **SMALL, cutoffs=[10, 30]),
    "untied adaptive": lambda: TransformerLanguageModel(50, **SMALL, cutoffs=[10, 30], tie_weights=False),
    "stateless": Stateless,
}
ALL = [name for name in NETWORKS if name != "small lstm"]


@functools.cache
def _prepared(name, ends):
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    inputs, shapes, states = preparing_arguments(network, 50)
    config = QuantizationConfig(min_bits=4, max_bits=8, ends=ends)
    return network, prepare(network, inputs, config, dynamic_shapes=shapes, states=states)


def prepared(name, ends="scheduled"):
    network, model = _prepared(name, ends)
    return network, copy.deepcopy(model)


def text(rows=3, length=9, seed=2):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def calibrated(name):
    _, model = prepared(name)
    calibrate(model, [{TOKENS_NAME: text()}])
    return model.eval()


def scores(model, tokens, state=None):
    (result,), after = call_with_state(model, model.signature, {TOKENS_NAME: tokens}, state)
    return result, after


@pytest.mark.parametrize("name", ALL)
def test_with_quantizers_off_it_computes_what_the_network_does(name):
    network, model = prepared(name)
    with float_bits(model.eval()), torch.no_grad():
        found, state = scores(model, text())
        expected = network(text(), *getattr(network, "initial_state", lambda rows: ())(3))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, wanted in zip((found, *state), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", [name for name in ALL if name != "stateless"])
def test_in_two_parts_with_their_state_is_as_in_one(name):
    model = calibrated(name)
    whole, _ = scores(model, text())
    first, state = scores(model, text()[:, :4])
    second, _ = scores(model, text()[:, 4:], state)
    # A sum in another order may cross a rounding boundary, which moves a code.
    assert (torch.cat([first, second], 1) - whole).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_no_token_sees_a_later_one(name):
    model, changed = calibrated(name), text()
    changed[:, 5:] = (changed[:, 5:] + 7) % 50
    torch.testing.assert_close(scores(model, changed)[0][:, :5], scores(model, text())[0][:, :5])


@pytest.mark.parametrize("name", ALL)
def test_bits_change_what_is_computed_and_gradients_arrive(name):
    network, model = prepared(name)
    model.train()
    losses = []
    for number, bits in enumerate((8, 4)):
        model.set_step(number)
        model.set_bits(bits, 8)
        result = scores(model, text())[0]
        losses.append(nn.functional.cross_entropy(result.flatten(0, 1), text().roll(-1, 1).flatten()))
    assert losses[0] != losses[1]
    losses[1].backward()
    parameters = dict(model.named_parameters())
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert len(parameters) <= len(dict(network.named_parameters()))  # shared ones stay shared


@pytest.mark.parametrize("name", [name for name in ALL if name != "stateless"])
def test_the_modules_at_the_ends_keep_max_bits(name):
    _, model = prepared(name, "fixed")
    held = {layer.name.partition(".")[0].partition("_")[0] for layer in model.layers() if layer.group == "fixed"}
    assert held == {"embedding", "head"}
    assert any(layer.group == "scheduled" for layer in model.layers())


def test_states_of_a_fixed_size_are_carried_and_those_that_grow_are_not():
    lstm, transformer, stateless = (prepared(name)[1].signature for name in ("lstm", "transformer", "stateless"))
    assert carries_state(lstm)
    assert not carries_state(transformer)
    assert not carries_state(stateless)
    assert [part.shape for part in initial_state(lstm, 3)] == [(3, 2, 20)] * 2
    assert [part.shape for part in initial_state(transformer, 3)] == [(3, 2, 0, 16)] * 4
    assert initial_state(stateless, 3) == ()


def test_macs_are_those_of_the_matrices_for_a_token():
    expected = 4 * 20 * (12 + 20) + 4 * 20 * (20 + 20) + 20 * 50
    assert sum(layer.macs for layer in prepared("lstm")[1].layers()) == expected
    found = describe_language_model("lstm-lm", 50, embedding=12, hidden=20, layers=2)
    assert found.macs == expected
    assert found.parameters == 50 * 12 + expected + 2 * 2 * 80 + 50
    for name in ("transformer", "adaptive transformer"):
        network, model = prepared(name)
        linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
        assert sum(layer.macs for layer in model.layers()) == sum(module.weight.numel() for module in linears)


def test_rows_of_the_table_are_on_their_own_qparams():
    network, model = prepared("small lstm")
    layer = model.network.embedding
    assert isinstance(layer, QuantizedEmbedding)
    model.set_bits(4, 8)
    codes, scales = quantize_weight(network.embedding.weight, torch.tensor(7.0))
    torch.testing.assert_close(layer(torch.arange(6)), (codes * scales[:, None])[:6])


def test_an_lstm_layer_is_integer_products_and_onnx_gates():
    """Codes by our scales through onnxruntime's float LSTM, whose gates lie i, o, f, c, step by step."""
    model = calibrated("small lstm")
    layer = model.network.layers.get_submodule("0")
    x = model.network.embedding(text()).transpose(0, 1)
    quantizer = next(
        model.network.get_submodule(node.target)
        for node in model.network.graph.nodes
        if any(user.target == "layers.0" for user in node.users) and "quantizers" in str(node.target)
    )
    with torch.no_grad():
        found, h, c = layer(quantizer(x), torch.zeros(3, 20), torch.zeros(3, 20))
    weights = [
        quantize_weight(part.weight, part.limited_quant_max(torch.tensor(127.0), part.weight))
        for part in (layer.input_layer, layer.hidden_layer)
    ]
    w, r = ((codes * scale[:, None]).detach() for codes, scale in weights)
    order = torch.cat([torch.arange(20) + 20 * gate for gate in (0, 3, 1, 2)])
    bias = torch.cat([layer.input_layer.bias.detach()[order], torch.zeros(80)])
    session = _onnx_lstm(w[order], r[order], bias)
    state, cell = torch.zeros(3, 20), torch.zeros(3, 20)
    for step in range(len(x)):
        inputs = {"x": _fake(quantizer, x[step])[None], "h": _fake(layer.hidden_quantizer, state)[None]}
        feed = {name: tensor.detach().numpy() for name, tensor in {**inputs, "c": cell[None]}.items()}
        state, cell = (torch.from_numpy(value[0]) for value in session.run(None, feed))
        torch.testing.assert_close(found[step], state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((h, c), (state, cell), rtol=1e-4, atol=1e-5)


def _fake(quantizer, x):
    qparams = quantizer.kept_qparams()
    return (quantize(x, *qparams) - qparams.zero_point) * qparams.scale


def _onnx_lstm(w, r, bias):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None]) for name in "xhc"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None]) for name in ("h1", "c1")]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [1, *value.shape], value.numpy().tobytes(), raw=True)
        for name, value in (("w", w), ("r", r), ("b", bias))
    ]
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "h1", "c1"], hidden_size=20)
    graph = helper.make_graph([node], "lstm", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_training_ranges_of_the_hidden_state_are_the_extremes_of_the_chunk():
    _, model = prepared("small lstm")
    model.train().compute = "modules"
    layer = model.network.layers.get_submodule("0")
    states = []
    layer.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    scores(model, text())
    seen = states[0][:-1].detach()  # the last state is multiplied in the next chunk
    assert math.isclose(float(layer.hidden_quantizer.high), max(float(seen.max()), 0.0), rel_tol=1e-6)
    assert math.isclose(float(layer.hidden_quantizer.low), min(float(seen.min()), 0.0), rel_tol=1e-6)
    assert int(layer.hidden_quantizer.batches) == 1


def test_calibration_carries_the_state_from_batch_to_batch():
    _, model = prepared("lstm")
    _, other = prepared("lstm")
    chunks = [text(seed=seed) for seed in range(3)]
    calibrate(model, [{TOKENS_NAME: chunk} for chunk in chunks])
    state, batches = initial_state(other.signature, 3), []
    for chunk in chunks:  # at 8 bits the states are those of the quantized model itself
        batches.append((chunk, *state))
        with torch.no_grad(), other.at_max_bits():
            state = scores(model.eval(), chunk, state)[1]
    calibrate(other, batches)
    for (_, one), (_, two) in zip(model.quantizers(), other.quantizers(), strict=True):
        torch.testing.assert_close((one.low, one.high), (two.low, two.high), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_sensitivity_is_the_divergence_of_the_next_tokens(name):
    model = calibrated(name)

    def divergence(reference, outputs):
        log, other = (torch.log_softmax(result[0], -1) for result in (reference, outputs))
        return (log.exp() * (log - other)).sum()

    layers = measure_sensitivity(model, [{TOKENS_NAME: text()}], [2, 8], divergence=divergence)
    assert [layer.name for layer in layers] == [layer.name for layer in model.layers()]
    assert all(layer.cost[2] > layer.cost[8] for layer in layers)
    assert all(layer.cost[8] == pytest.approx(0, abs=1e-6) for layer in layers)


def test_more_tokens_than_the_context_are_an_error():
    _, model = prepared("transformer")
    model.eval()
    with pytest.raises(UsageError, match="at most 16 tokens, the model's context, but got 17"):
        scores(model, text(length=17))
    _, state = scores(model, text(length=16))
    with pytest.raises(UsageError, match="but got 17"):
        scores(model, text(length=1), state)


def test_wrong_names_and_arguments_are_errors():
    with pytest.raises(UsageError, match="known language model"):
        build_language_model("lstm-ml", 50)
    with pytest.raises(UsageError, match="arguments that model lstm-lm takes"):
        build_language_model("lstm-lm", 50, width=3)
    with pytest.raises(UsageError, match="equal with tie_weights"):
        build_language_model("lstm-lm", 50, embedding=3, hidden=4, tie_weights=True)
    with pytest.raises(UsageError, match="cutoffs that rise"):
        build_language_model("transformer-lm", 50, cutoffs=[30, 10])
    with pytest.raises(UsageError, match="heads divide"):
        build_language_model("transformer-lm", 50, features=30, heads=4)
    with pytest.raises(UsageError, match="to return a language model, but it returns a set"):
        build_language_model("tests.unit.quantization.test_language:no_module", 50)


def no_module(vocabulary):
    return {vocabulary}


def test_published_parameters_of_the_transformer_on_wikitext_103():
    """Baevski & Auli, 2018: 247 million parameters, with the projections of the bands shared, which are two here."""
    with torch.device("meta"):
        args = {"features": 1024, "layers": 16, "heads": 8, "inner": 4096, "context": 512, "cutoffs": [20000, 60000]}
        network = TransformerLanguageModel(267735, **args)
    projections = 1024 * 256 + 1024 * 64
    count = sum(parameter.numel() for parameter in network.parameters()) - projections
    assert np.isclose(count, 247e6, rtol=0.005)
