"""Modules of other libraries put as torch's own: the same numbers, and integers in the end."""

import pytest
import torch
from torch import nn

from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.quantization.conversion.capture.composites import taken_apart


@pytest.fixture
def layers():
    return pytest.importorskip("timm.layers", reason="needs timm: pip install '.[timm]'")


@pytest.fixture
def network(layers):
    torch.manual_seed(0)
    norm = layers.BatchNormAct2d(4, act_layer=nn.ReLU)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.running_mean, -1.0, 1.0)
    norm.requires_grad_(requires_grad=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_the_same_and_moves_the_same_averages(network, training):
    network.train(training)
    apart = taken_apart(network)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(apart(x), network(x))
    assert type(apart[1].norm) is nn.BatchNorm2d
    assert torch.equal(apart[1].norm.running_var, network[1].running_var)
    assert apart[1].norm.training is training
    assert apart[1].norm.weight.requires_grad


def test_the_network_itself_stays_as_it_was(network, layers):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    apart = taken_apart(network)
    nn.init.zeros_(apart[1].norm.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert isinstance(network[1], layers.BatchNormAct2d)


def test_it_becomes_part_of_the_layer_before_it(network):
    prepared = prepare(network, torch.zeros(2, 3, 8, 8), QuantizationConfig())
    assert [layer.name for layer in prepared.layers()] == ["0", "4"]
    assert len(dict(prepared.quantizers())) == 4  # input, layer with norm and ReLU, mean, logits


def test_its_linear_layer_is_one_of_the_prepared_model(network, layers):
    network[4] = layers.Linear(4, 2)
    network[4].bias.requires_grad_(requires_grad=False)
    x = torch.randn(5, 3, 8, 8)
    apart = taken_apart(network.eval())
    assert torch.equal(apart(x), network(x))
    assert type(apart[4]) is nn.Linear
    assert not apart[4].bias.requires_grad
    assert [layer.name for layer in prepare(network, torch.zeros(2, 3, 8, 8), QuantizationConfig()).layers()] == [
        "0",
        "4",
    ]


@pytest.mark.parametrize("training", [True, False])
def test_gpt2s_linear_layer_is_torchs(training):
    transformers = pytest.importorskip("transformers.pytorch_utils", reason="needs transformers")
    torch.manual_seed(0)
    network = nn.Sequential(transformers.Conv1D(6, 4), nn.ReLU(), nn.Linear(6, 2)).train(training)
    nn.init.normal_(network[0].bias)
    apart, x = taken_apart(network), torch.randn(5, 4)
    torch.testing.assert_close(apart(x), network(x))
    assert type(apart[0]) is nn.Linear
    assert apart[0].training is training
    assert [layer.name for layer in prepare(network, torch.zeros(2, 4), QuantizationConfig()).layers()] == ["0", "2"]
