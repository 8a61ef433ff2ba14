"""Offsets lie on the grids of the int32 biases: freezing rounds nothing more, and evaluation gives the same codes."""

import pytest
import torch
from torch import Tensor, nn

from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.quantization.calibration.bias_rounding import round_biases


def calibrated(name: str, config: QuantizationConfig | None = None, **bits: int) -> QuantizedModel:
    torch.manual_seed(0)
    network = build_model(name, num_classes=10, in_channels=1, input_size=(32, 32))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    model = prepare(network, torch.zeros(2, 1, 32, 32), config or QuantizationConfig())
    calibrate(model, [torch.randn(16, 1, 32, 32) for _ in range(3)], **bits)
    return model.eval()


def evaluated_codes(model: QuantizedModel, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return the codes that the edges of the trained model stand for."""
    graph, codes = freeze(model), {}
    hooks = []
    for name, quantizer in model.quantizers():
        if name in names:

            def keep(_module: nn.Module, _inputs: object, y: Tensor, name: str = name) -> None:
                tensor = graph.tensors[name]
                codes[name] = torch.round(y / tensor.scale) + tensor.zero_point

            hooks.append(quantizer.register_forward_hook(keep))
    with torch.no_grad(), model.at_max_bits():
        model(x)
    for hook in hooks:
        hook.remove()
    return codes


def share_of_differing_codes(model: QuantizedModel) -> float:
    graph, x = freeze(model), torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    executed = IntegerExecutor(graph).trace(x)
    evaluated = evaluated_codes(model, x, list(graph.tensors))
    assert len(evaluated) > 10
    differing = sum(int((executed[key] != codes).sum()) for key, codes in evaluated.items())
    return differing / sum(codes.numel() for codes in evaluated.values())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "torchvision/densenet121"])
def test_rounded_offsets_bring_the_model_near_its_integer_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every changed code changes others behind it, so what differs at all in such deep networks of noise is much."""
    rounded = share_of_differing_codes(calibrated(name))
    monkeypatch.setattr("cpt_deploy.quantization.calibration.calibrate.round_biases", lambda model: None)
    as_trained = share_of_differing_codes(calibrated(name))
    assert rounded < as_trained / 4


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4}, {"weight_bits": 3, "activation_bits": 3}])
def test_biases_are_integers_before_they_are_rounded(bits: dict[str, int]) -> None:
    model = calibrated("resnet20", **bits)
    before = [operation.bias.copy() for operation in freeze(model, **bits).weighted()]
    with model.at_max_bits(bits.get("weight_bits"), bits.get("activation_bits")):
        round_biases(model)
    after = [operation.bias for operation in freeze(model, **bits).weighted()]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_offsets_move_by_half_a_step_at_most() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model = prepare(net, torch.zeros(2, 1, 4, 4), QuantizationConfig())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calibrate(model, [torch.randn(16, 1, 4, 4)])
    graph = freeze(model)
    for operation in graph.weighted():
        step = operation.scales * graph.tensors[operation.inputs[0]].scale
        moved = model.network.get_submodule(operation.source).bias - before[f"network.{operation.source}.bias"]
        assert (moved.detach().abs().numpy() <= 0.501 * step).all()
        assert moved.abs().max() > 0


def test_a_model_that_stays_in_float_keeps_its_offsets() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model = prepare(net, torch.zeros(2, 1, 4, 4), QuantizationConfig(min_bits=32, max_bits=32))
    before = [parameter.clone() for parameter in model.parameters()]
    calibrate(model, [torch.randn(16, 1, 4, 4)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_norm_without_parameters_has_its_mean_moved() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(16, 3))
    model = prepare(net, torch.zeros(2, 1, 4, 4), QuantizationConfig())
    calibrate(model, [torch.randn(16, 1, 4, 4) for _ in range(2)])
    norm = model.network.get_submodule("1")
    before = norm.running_mean.clone()
    with model.at_max_bits():
        round_biases(model)
    assert torch.allclose(norm.running_mean, before, atol=1e-7)
    graph, x = freeze(model.eval()), torch.randn(64, 1, 4, 4)
    tensor = next(t for t in graph.tensors.values() if len(t.shape) == 3 and t.shape[0] == 4)
    evaluated = evaluated_codes(model, x, [tensor.name])[tensor.name]
    assert (IntegerExecutor(graph).trace(x)[tensor.name] != evaluated).float().mean() < 1e-3
