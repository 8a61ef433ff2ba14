"""Layers that are left out of quantization compute in float, and everything says so."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cpt_deploy import QuantizationConfig, calibrate, export_onnx, prepare
from cpt_deploy.errors import UsageError
from cpt_deploy.integer.float_costs import float_costs
from cpt_deploy.validation import compare_integers


class Head(nn.Sequential):
    """Two layers below one name."""

    def __init__(self):
        super().__init__(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(nn.ModuleDict({"body": body})["body"], Head())


X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("chosen", "in_float"),
    [
        ({"exclude": ["1"]}, ["1.0", "1.2"]),
        ({"exclude": ["1.*"]}, ["1.0", "1.2"]),
        ({"exclude": [Head]}, ["1.0", "1.2"]),
        ({"exclude": ["1.2", "0.3"]}, ["0.3", "1.2"]),
        ({"include": [nn.Conv2d]}, ["1.0", "1.2"]),
        ({"include": ["0", "1.2"], "exclude": ["0.0"]}, ["0.0", "1.0"]),
    ],
    ids=str,
)
def test_what_is_excluded_stays_in_float_and_is_known(chosen, in_float, tmp_path):
    model = prepare(network(), torch.zeros(2, 3, 6, 6), QuantizationConfig(**chosen))
    everything = prepare(network(), torch.zeros(2, 3, 6, 6), QuantizationConfig())
    macs = {layer.name: layer.macs for layer in everything.layers()}
    assert {layer.name: layer.macs for layer in model.float_layers} == {name: macs[name] for name in in_float}
    assert {layer.name for layer in model.layers()} == macs.keys() - set(in_float)
    assert model.conversion.path == "float parts"
    assert all(name in model.conversion.reason for name in in_float)

    loss = nn.functional.cross_entropy(model.train()(X), torch.arange(8) % 3)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    calibrate(model, [X])
    graph = export_onnx(model.eval(), tmp_path / "net.onnx")
    costs = float_costs(graph)
    assert costs.float_macs == sum(macs[name] for name in in_float)
    assert costs.integer_macs == sum(macs.values()) - costs.float_macs
    file = (tmp_path / "net.onnx").read_bytes()
    assert compare_integers(graph, file, {"image": X.numpy()}).mismatches == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    expected = model(X).detach().numpy()
    found = session.run(None, {"image": X.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_an_excluded_float_layer_is_the_given_one():
    given = network()
    model = prepare(given, torch.zeros(2, 3, 6, 6), QuantizationConfig(exclude=["1.2"]))
    weight = model.network.get_parameter("1.2.weight")
    assert torch.equal(weight, given[1][2].weight)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_that_is_excluded_computes_as_it_does(recurrent, tmp_path):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 8)
            self.recurrent = recurrent(8, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, tokens):
            return self.head(self.recurrent(self.table(tokens))[0][:, -1])

    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (8, 5))
    model = prepare(Tagger(), tokens[:2], QuantizationConfig(exclude=[recurrent]))
    gates = {nn.LSTM: 4, nn.GRU: 3}[recurrent]
    assert [(layer.name, layer.macs) for layer in model.float_layers] == [("recurrent", 5 * gates * 6 * (8 + 6))]
    calibrate(model, [tokens])
    graph = export_onnx(model.eval(), tmp_path / "net.onnx")
    file = (tmp_path / "net.onnx").read_bytes()
    assert compare_integers(graph, file, {"input_ids": tokens.numpy()}).mismatches == 0


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"exclude": ["heads"]}, "'heads' matches none"),
        ({"include": [nn.LSTM]}, "LSTM matches none"),
        ({"exclude": "head"}, "a list of patterns or types"),
        ({"exclude": [3]}, "patterns or types of modules"),
    ],
    ids=str,
)
def test_a_choice_that_means_nothing_is_refused(chosen, said):
    with pytest.raises(UsageError, match=said):
        prepare(network(), torch.zeros(2, 3, 6, 6), QuantizationConfig(**chosen))
