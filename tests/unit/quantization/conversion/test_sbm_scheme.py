"""Networks of the scheme "sbm": which of their tensors are quantized and how, and that they train only."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cpt_deploy as cpt
from cpt_deploy.errors import ConversionError, TrainingOnlyError, UsageError
from cpt_deploy.integer import freeze
from cpt_deploy.quantization import LayerGroup, QuantizationConfig, QuantizedModel

SBM = QuantizationConfig(scheme="sbm")


class Residual(nn.Module):
    """A convolution, a residual block with a 1×1 shortcut, a mean, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        return self.fc(functional.relu(self.second(x) + self.shortcut(x)).mean((2, 3)))


def rounded(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The published formula, with a straight-through gradient."""
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    values = ((x - low) / scale).round().clamp(0, 2**bits - 1) * scale + low
    return x + (values - x).detach()


def convolved(layer: nn.Conv2d, x: Tensor, bits: int) -> Tensor:
    """A convolution whose input is quantized per tensor and whose weight per channel; its bias is float."""
    w = layer.weight
    weight = rounded(w, w.amin((1, 2, 3), keepdim=True).detach(), w.amax((1, 2, 3), keepdim=True).detach(), bits)
    x = rounded(x, x.min().detach(), x.max().detach(), bits)
    return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def by_hand(network: Residual, x: Tensor, bits: int) -> Tensor:
    x = functional.relu(network.norm(convolved(network.first, x, bits)))
    x = functional.relu(convolved(network.second, x, bits) + convolved(network.shortcut, x, bits))
    return network.fc(x.mean((2, 3)))


@pytest.fixture
def networks() -> tuple[Residual, QuantizedModel]:
    """A float network, and a model that was prepared from a copy."""
    torch.manual_seed(0)
    network = Residual().train()
    return network, cpt.prepare(copy.deepcopy(network), torch.zeros(2, 3, 8, 8), SBM).train()


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_outputs_and_gradients_are_those_of_the_formula(networks, bits: int) -> None:
    network, model = networks
    model.set_bits(bits, 32)  # gradients in float32
    x = torch.randn(6, 3, 8, 8)
    for module in (model, lambda x: by_hand(network, x, bits)):
        module(x).square().sum().backward()
    assert torch.allclose(model(x), by_hand(network, x, bits), atol=1e-5)
    parameters = {name.removeprefix("network."): parameter for name, parameter in model.named_parameters()}
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameters[name].grad, parameter.grad, rtol=1e-3, atol=1e-4), name


def test_gradients_of_convolutions_are_rounded_and_that_of_the_classifier_is_not() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Flatten(), nn.Linear(6, 5, bias=False))
    model = cpt.prepare(network, torch.zeros(2, 3, 1, 1), SBM).train()
    model.set_bits(32, 2)
    images = torch.eye(3).view(3, 3, 1, 1)  # so that the weight's gradient is that of the convolution's outputs
    model(images).square().sum().backward()
    convolution, classifier = model.network.get_submodule("0"), model.network.get_submodule("2")
    features = network[0].weight.detach().flatten(1).T
    logits = features @ network[2].weight.detach().T
    assert torch.allclose(classifier.weight.grad, 2 * logits.T @ features, atol=1e-6)
    real = 2 * logits @ network[2].weight.detach()
    rounded_gradient = convolution.weight.grad.flatten(1).T
    allowed = torch.linspace(float(real.min()), float(real.max()), 4)
    assert (rounded_gradient[..., None] - allowed).abs().amin(-1).max() < 1e-6
    assert (rounded_gradient - real).abs().max() <= allowed[1] - allowed[0]
    assert rounded_gradient.min() == pytest.approx(float(real.min()))
    assert rounded_gradient.max() == pytest.approx(float(real.max()))


def test_only_inputs_of_convolutions_are_quantized_and_equal_inputs_once(networks) -> None:
    _, model = networks
    assert [layer.group for layer in model.layers()] == ["scheduled"] * 3
    assert [layer.name for layer in model.layers()] == ["first", "second", "shortcut"]
    assert [(layer.name, layer.macs) for layer in model.float_layers] == [("fc", 30)]
    quantizers = dict(model.quantizers())
    assert len(quantizers) == 2
    assert {quantizer.group for quantizer in quantizers.values()} == {"scheduled"}


def test_ends_and_groups_and_exclusions(networks) -> None:
    group = LayerGroup("group1", "second", 4)
    config = QuantizationConfig(scheme="sbm", ends="fixed", groups=(group,), exclude=["shortcut"])
    model = cpt.prepare(Residual(), torch.zeros(2, 3, 8, 8), config)
    assert config.ends == "scheduled"
    assert {layer.name: layer.group for layer in model.layers()} == {"first": "scheduled", "second": "group1"}
    assert {layer.name for layer in model.float_layers} == {"shortcut", "fc"}


def test_layers_of_two_groups_that_read_one_tensor_quantize_it_each(networks) -> None:
    config = QuantizationConfig(scheme="sbm", groups=(LayerGroup("group1", "second", 4),))
    model = cpt.prepare(Residual(), torch.zeros(2, 3, 8, 8), config).train()
    model(torch.randn(4, 3, 8, 8))
    assert sorted(quantizer.bits for _, quantizer in model.quantizers()) == [4, 8, 8]


def test_a_network_of_convolutions_alone_has_no_other_quantizers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = cpt.prepare(network, torch.zeros(2, 3, 8, 8), SBM)
    assert len(list(model.quantizers())) == len(model.layers()) == 2
    assert model.conversion.path == "training only"


def test_it_trains_module_by_module_and_says_why(networks) -> None:
    path = networks[1].execution_path()
    assert not path.fused
    assert not path.hindered
    assert "real-valued zero points" in path.reason
    assert "for training only" in networks[1].conversion.in_words


def test_a_schedule_and_a_state_go_with_it(networks) -> None:
    _, model = networks
    schedule = cpt.CyclicPrecision(model, total_steps=4, cycles=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(6, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        schedule.step()
    offset = model.network.get_submodule("second").bias.detach().clone()
    cpt.calibrate(model, [torch.randn(6, 3, 8, 8) for _ in range(2)])
    assert torch.equal(offset, model.network.get_submodule("second").bias)  # there is no integer form to round it for
    other = cpt.prepare(Residual(), torch.zeros(2, 3, 8, 8), SBM)
    other.load_state_dict(model.state_dict())
    x = torch.randn(6, 3, 8, 8)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_it_cannot_be_frozen_or_exported(networks, tmp_path) -> None:
    _, model = networks
    for export in (freeze, lambda m: cpt.export_onnx(m, tmp_path / "net.onnx")):
        with pytest.raises(TrainingOnlyError, match=r"quantization\.scheme=sbm"):
            export(model)
    with pytest.raises(TrainingOnlyError):
        cpt.export_bundle(model, tmp_path / "bundle", task="image-classification")
    assert not list(tmp_path.iterdir())


def test_what_it_cannot_quantize_is_refused() -> None:
    with pytest.raises(ConversionError, match="Expected a model with convolutions"):
        cpt.prepare(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 4), SBM)
    with pytest.raises(UsageError, match="integers or sbm, but got 'smb'"):
        QuantizationConfig(scheme="smb")  # type: ignore[arg-type]


def test_no_step_waits_for_a_device() -> None:
    """Reading a value is an error on the device "meta", whose tensors have none."""
    model = cpt.prepare(Residual(), torch.zeros(2, 3, 8, 8), SBM).train().to("meta")
    model(torch.empty(4, 3, 8, 8, device="meta")).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
