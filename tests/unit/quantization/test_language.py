import math

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.models.language import LstmLanguageModel, TransformerLanguageModel, build_language_model
from cpt_deploy.quantization import QuantizationConfig, calibrating, prepare_language_model
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding
from cpt_deploy.quantization.numerics.affine import quantize, quantize_weight

SMALL = {"features": 32, "layers": 2, "heads": 2, "inner": 48, "context": 16, "dropout": 0.0}
NETWORKS = {
    "lstm": lambda: LstmLanguageModel(50, embedding=12, hidden=20, layers=2, dropout=0.0),
    "tied lstm": lambda: LstmLanguageModel(50, embedding=20, hidden=20, layers=2, dropout=0.0, tie_weights=True),
    "transformer": lambda: TransformerLanguageModel(50, **SMALL),
    "adaptive transformer": lambda: TransformerLanguageModel(50, **SMALL, cutoffs=[10, 30]),
    "untied adaptive": lambda: TransformerLanguageModel(50, **SMALL, cutoffs=[10, 30], tie_weights=False),
}
CONFIG = QuantizationConfig(min_bits=4, max_bits=8, ends="scheduled")


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(1)
    return NETWORKS[request.param]().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(2))


def calibrated(network, tokens, config=CONFIG):
    model = prepare_language_model(network, config)
    with torch.no_grad(), calibrating(model):
        model(tokens)
    return model.eval()


def test_at_32_bits_nothing_is_quantized(network, tokens):
    model = prepare_language_model(network, QuantizationConfig(min_bits=4, max_bits=32, ends="scheduled"))
    expected, state = network(tokens, network.initial_state(3))
    found, own_state = model(tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own_state, state)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 9))


def test_in_two_parts_with_their_state_is_as_in_one(network, tokens):
    model = calibrated(network, tokens)
    whole, _ = model(tokens)
    first, state = model(tokens[:, :4])
    second, _ = model(tokens[:, 4:], state)
    # A sum in another order may cross a rounding boundary, which moves a code.
    assert (torch.cat([first, second], 1) - whole).abs().mean() < 1e-3


def test_no_token_sees_a_later_one(network, tokens):
    model = calibrated(network, tokens)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 50
    torch.testing.assert_close(model(changed)[0][:, :5], model(tokens)[0][:, :5])


def test_scores_are_those_of_the_log_probabilities(network, tokens):
    model = calibrated(network, tokens)
    targets = tokens.roll(-1, 1)
    targets[0, :4] = -100
    score = model.score(tokens, targets)
    wanted = targets >= 0
    expected = -model(tokens)[0][wanted].gather(1, targets[wanted][:, None])[:, 0]
    torch.testing.assert_close(score.losses, expected, rtol=1e-4, atol=1e-5)
    assert score.targets == 23
    assert int(score.hits) <= int((model(tokens)[0][wanted].argmax(1) == targets[wanted]).sum())


def test_bits_change_what_is_computed_and_gradients_arrive(network, tokens):
    model = prepare_language_model(network, CONFIG).train()
    losses = []
    for bits in (8, 4):
        model.set_bits(bits, 8)
        losses.append(model.score(tokens, tokens.roll(-1, 1)).losses.mean())
    assert losses[0] != losses[1]
    losses[1].backward()
    parameters = dict(model.named_parameters())
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert len(parameters) <= len(dict(network.named_parameters()))  # shared ones stay shared


def test_ends_hold_where_they_are_to(network):
    model = prepare_language_model(network, QuantizationConfig(min_bits=4, max_bits=8))
    held = {layer.name.partition(".")[0] for layer in model.layers() if layer.role == "fixed"}
    assert held == {"embedding", "head"}


def test_macs_of_an_lstm_are_those_of_its_matrices():
    model = prepare_language_model(LstmLanguageModel(50, embedding=12, hidden=20, layers=2), CONFIG)
    assert sum(layer.macs for layer in model.layers()) == 4 * 20 * (12 + 20) + 4 * 20 * (20 + 20) + 20 * 50


def test_rows_of_the_table_are_on_their_own_qparams():
    table = nn.Embedding(6, 4)
    network = LstmLanguageModel(6, embedding=4, hidden=4, layers=1)
    network.embedding = table
    model = prepare_language_model(network, CONFIG)
    layer = model.network.embedding
    assert isinstance(layer, QuantizedEmbedding)
    model.set_bits(4, 8)
    codes, scales = quantize_weight(table.weight, torch.tensor(7.0))
    torch.testing.assert_close(layer(torch.arange(6)), codes * scales[:, None])


def test_an_lstm_layer_is_integer_products_and_onnx_gates(tokens):
    """Codes by our scales through onnxruntime's float LSTM, whose gates lie i, o, f, c, step by step."""
    model = calibrated(LstmLanguageModel(50, embedding=12, hidden=20, layers=1, dropout=0.0), tokens)
    layer = model.network.layers[0]
    x = model.network.embedding(tokens)
    with torch.no_grad():
        found, (h, c) = layer(x, tuple(part[:1] for part in model.initial_state(3)))
    weights = [
        quantize_weight(part.weight, part.limited_quant_max(torch.tensor(127.0), part.weight))
        for part in (layer.input_layer, layer.hidden_layer)
    ]
    w, r = ((codes * scale[:, None]).detach() for codes, scale in weights)
    order = torch.cat([torch.arange(20) + 20 * gate for gate in (0, 3, 1, 2)])
    bias = torch.cat([layer.input_layer.bias.detach()[order], torch.zeros(80)])
    session = _onnx_lstm(w[order], r[order], bias)
    state, cell = torch.zeros(3, 20), torch.zeros(3, 20)
    for step in range(tokens.shape[1]):
        inputs = {"x": _fake(layer.input_quantizer, x[:, step])[None], "h": _fake(layer.hidden_quantizer, state)[None]}
        feed = {name: tensor.detach().numpy() for name, tensor in {**inputs, "c": cell[None]}.items()}
        state, cell = (torch.from_numpy(value[0]) for value in session.run(None, feed))
        torch.testing.assert_close(found[:, step], state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((h[0], c[0]), (state, cell), rtol=1e-4, atol=1e-5)


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


def test_training_ranges_of_the_hidden_state_are_the_extremes_of_the_chunk(tokens):
    model = prepare_language_model(LstmLanguageModel(50, embedding=12, hidden=20, layers=1), CONFIG).train()
    layer = model.network.layers[0]
    states = []
    layer.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    model.score(tokens, tokens)
    seen = states[0][:, :-1].detach()  # the last state is multiplied in the next chunk
    assert math.isclose(float(layer.hidden_quantizer.high), max(float(seen.max()), 0.0), rel_tol=1e-6)
    assert math.isclose(float(layer.hidden_quantizer.low), min(float(seen.min()), 0.0), rel_tol=1e-6)
    assert int(layer.hidden_quantizer.batches) == 1


def test_more_tokens_than_the_context_are_an_error(tokens):
    model = prepare_language_model(TransformerLanguageModel(50, **{**SMALL, "context": 8}), CONFIG)
    with pytest.raises(UsageError, match="at most 8 tokens, the model's context, but got 9"):
        model(tokens)
    _, state = model(tokens[:, :8])
    with pytest.raises(UsageError, match="but got 9"):
        model(tokens[:, :1], state)


def test_wrong_shapes_names_and_arguments_are_errors():
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
    network = LstmLanguageModel(50, embedding=4, hidden=4, layers=1)
    network.layers[0] = nn.LSTM(4, 4, num_layers=2, batch_first=True)
    with pytest.raises(ConversionError, match=r"num_layers=2 in layers\.0"):
        prepare_language_model(network, CONFIG)


def test_published_parameters_of_the_transformer_on_wikitext_103():
    """Baevski & Auli, 2018: 247 million parameters, with the projections of the bands shared, which are two here."""
    with torch.device("meta"):
        args = {"features": 1024, "layers": 16, "heads": 8, "inner": 4096, "context": 512, "cutoffs": [20000, 60000]}
        network = TransformerLanguageModel(267735, **args)
    projections = 1024 * 256 + 1024 * 64
    count = sum(parameter.numel() for parameter in network.parameters()) - projections
    assert np.isclose(count, 247e6, rtol=0.005)
