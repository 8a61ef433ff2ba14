"""Layers with bits of their own: which they are, at how many bits each tensor runs, and what is frozen."""

import re

import pytest
import torch
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models import build_model
from cpt_deploy.quantization import LayerGroup, QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import QuantizedLayer

SECOND = LayerGroup("group1", "groups.1.*", max_bits=6)


def tiny(*groups: LayerGroup, **options: object) -> QuantizedModel:
    torch.manual_seed(0)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    return prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig(groups=groups, **options))  # type: ignore[arg-type]


def bits_of_weights(model: QuantizedModel) -> dict[str, int]:
    return {
        name: module.precision.weight_bits_of(module.index, module.group)
        for name, module in model.network.named_modules()
        if isinstance(module, QuantizedLayer)
    }


def test_layers_have_the_bits_of_the_first_group_that_matches():
    model = tiny(LayerGroup("group1", "*.shortcut.0", max_bits=5), LayerGroup("group2", "groups.1.*", max_bits=6))
    model.set_bits(3, 8, {"group1": 4, "group2": 5})
    assert bits_of_weights(model) == {
        "conv1": 8,
        "groups.0.0.conv1": 3,
        "groups.0.0.conv2": 3,
        "groups.1.0.conv1": 5,
        "groups.1.0.conv2": 5,
        "groups.1.0.shortcut.0": 4,
        "fc": 8,
    }


def test_groups_without_bits_follow_the_others_up_to_their_own_bound():
    model = tiny(SECOND)
    for forward, expected in ((3, 3), (6, 6), (8, 6)):
        model.set_bits(forward, 8)
        assert bits_of_weights(model)["groups.1.0.conv1"] == expected


def test_weights_and_inputs_of_a_group_lie_on_its_own_grid():
    model = tiny(SECOND)
    model.compute = "modules"
    model.train().set_bits(8, 8, {"group1": 2})
    inputs: dict[str, torch.Tensor] = {}
    layer = model.network.get_submodule("groups.1.0.conv1")
    layer.register_forward_pre_hook(lambda _, args: inputs.update(x=args[0].detach()))
    model(torch.randn(16, 1, 8, 8))
    assert isinstance(layer, QuantizedLayer)
    assert len(inputs["x"].unique()) <= 4
    assert all(len(channel.unique()) <= 3 for channel in layer.quantized_weight.detach())
    neighbour = model.network.get_submodule("groups.0.0.conv1")
    assert isinstance(neighbour, QuantizedLayer)
    assert len(neighbour.quantized_weight.detach().unique()) > 16


def test_an_edge_has_the_bits_of_a_group_only_if_nothing_else_reads_it():
    network = tiny(SECOND).network
    groups = {name: module.group for name, module in network.named_modules() if isinstance(module, ActivationQuantizer)}
    inputs = {module.group for module in network.modules() if isinstance(module, Requantize)}
    # The second block's convolution and shortcut both belong to the group; the first block's input is added as well.
    assert set(groups.values()) == {"scheduled", "group1", "fixed"}
    assert inputs == {"scheduled"}
    shared = tiny(LayerGroup("group1", "*.shortcut.0", 6)).network
    assert {module.group for module in shared.modules() if isinstance(module, Requantize)} == {"scheduled", "group1"}


def test_the_upper_bound_is_each_groups_own_and_bits_come_back():
    model = tiny(SECOND)
    model.set_bits(4, 7, {"group1": 3})
    with model.at_max_bits():
        assert bits_of_weights(model)["groups.1.0.conv1"] == 6
        with model.at_max_bits(4, 8):
            assert bits_of_weights(model)["groups.1.0.conv1"] == 4
            assert model.precision.activation_bits["group1"] == 6
        assert (model.precision.weight_bits["group1"], model.precision.activation_bits["group1"]) == (6, 6)
    assert bits_of_weights(model)["groups.1.0.conv1"] == 3
    assert model.precision.gradient_bits == 7
    assert model.layer_bits()["groups.1.0.conv2"] == 6
    assert model.layer_bits()["groups.0.0.conv1"] == 8
    assert model.layer_bits({"fc": 4})["groups.1.0.conv2"] == 6


@pytest.mark.parametrize(
    ("group", "name"),
    [(SECOND, "groups.1.0.conv1"), (LayerGroup("group1", "*.shortcut.0", 6), "groups.1.0.shortcut.0")],
    ids=["activation of the group", "activation that is shared"],
)
def test_training_on_codes_computes_what_the_modules_do(group, name):
    """Both paths with a group at bits of its own, from the same weights, in the first step's loss and gradients."""
    model = tiny(group)
    x, labels = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))
    results = []
    for compute in ("modules", "float32"):
        model.compute = compute  # type: ignore[assignment]
        model.train().set_bits(5, 8, {"group1": 3})
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        gradient = model.network.get_submodule(name).weight.grad
        results.append((loss.item(), gradient.clone()))
    assert results[0][0] == pytest.approx(results[1][0], abs=0.02)
    cosine = nn.functional.cosine_similarity(results[0][1].flatten(), results[1][1].flatten(), dim=0)
    assert cosine > 0.95


def test_bits_of_groups_are_data_to_a_compiled_layer():
    """A layer that is compiled once runs at other bits without being compiled again."""
    layer = tiny(SECOND).network.get_submodule("groups.1.0.conv1")
    assert isinstance(layer, QuantizedLayer)
    compilations = 0

    def backend(graph, _):
        nonlocal compilations
        compilations += 1
        return graph.forward

    quant_max = torch.compile(
        lambda: layer.precision.weight_quant_max(layer.group) * 1.0, backend=backend, fullgraph=True
    )
    found = []
    for bits in (2, 3, 4, 5, 6):
        layer.precision.set(weights=8, activations=8, gradients=8, groups={"group1": bits})
        found.append(float(quant_max()))
    assert found == [1, 3, 7, 15, 31]
    assert compilations == 1


@pytest.mark.parametrize(
    ("groups", "message", "hint"),
    [
        ([LayerGroup("group1", "group.1.*", 8)], r"matches layers.*'group\.1\.\*'", r"did you mean groups\.1\.0"),
        ([LayerGroup("group1", "fc", 8)], "matches only fc, which has fixed", "precision.ends=scheduled"),
        ([SECOND, LayerGroup("group2", "groups.1.0.conv1", 8)], "belong to earlier groups", "first group"),
        ([LayerGroup("group1", "fc", 9)], r"max_bits of layers 'fc' in 2\.\.8", "cannot exceed"),
    ],
)
def test_groups_that_get_no_layers_are_refused(groups, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        tiny(*groups)
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)


def test_the_ends_can_be_a_group_where_they_cycle():
    model = tiny(LayerGroup("group1", "fc", 8), ends="scheduled")
    assert [layer.name for layer in model.layers() if layer.group == "group1"] == ["fc"]
