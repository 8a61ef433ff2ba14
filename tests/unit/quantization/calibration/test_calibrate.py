"""Calibration: plain averages over the given batches, at the bits asked for, and nothing else changes."""

import pytest
import torch
from torch import nn

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_ranges_become_the_mean_of_the_batches_extremes() -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig()).train()
    model(100 * torch.randn(8, 1, 4, 4))  # forgotten
    batches = [torch.randn(8, 1, 4, 4) for _ in range(5)]
    assert calibrate(model, iter(batches)) == 5
    quantizer = dict(model.quantizers())[next(name for name, _ in model.quantizers())]
    assert quantizer.low == pytest.approx(float(torch.stack([b.min() for b in batches]).mean()), rel=1e-5)
    assert quantizer.high == pytest.approx(float(torch.stack([b.max() for b in batches]).mean()), rel=1e-5)


def test_batchnorm_statistics_become_the_mean_of_the_batches() -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig(min_bits=32, max_bits=32))
    batches = [torch.randn(8, 1, 4, 4) for _ in range(4)]
    calibrate(model, batches)
    conv, norm = model.network.get_submodule("0"), model.network.get_submodule("1")
    with torch.no_grad():
        means = torch.stack([conv(batch).mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert norm.momentum == 0.1


def test_weights_modes_and_bits_are_as_before() -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig()).train()
    model.set_bits(3, 8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    calibrate(model, [torch.randn(4, 1, 4, 4)], weight_bits=4)
    after = dict(model.named_parameters())
    assert {name for name, p in after.items() if not torch.equal(before[name], p)} == {
        "network.1.bias",
        "network.4.bias",
    }
    assert all(module.training for module in model.modules())
    assert model.precision.weight_bits["scheduled"] == 3
    assert not any(quantizer.cumulative for _, quantizer in model.quantizers())


def test_activations_run_at_their_bits_in_calibration() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 3))
    model = prepare(net, torch.zeros(2, 1, 4, 4), QuantizationConfig())
    seen = []
    model.network.get_submodule("2").register_forward_hook(lambda _m, args, _y: seen.append(len(args[0].unique())))
    batches = [torch.randn(32, 1, 4, 4)]
    calibrate(model, batches, activation_bits=2)
    calibrate(model, batches)
    assert seen[0] <= 4 < seen[1]


def test_single_layers_run_at_their_bits_in_calibration() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 30), nn.Linear(30, 3))
    model = prepare(net, torch.zeros(2, 1, 4, 4), QuantizationConfig())
    with model.at_max_bits({"2": 2}):
        weights = {i: model.network.get_submodule(i).quantized_weight[0].unique().numel() for i in ("0", "2", "3")}
    assert weights["2"] <= 3 < min(weights["0"], weights["3"])
    assert model.layer_bits({"2": 2}) == {"0": 8, "2": 2, "3": 8}
    assert model.layer_bits(4) == {"0": 8, "2": 4, "3": 8}
    assert model.network.get_submodule("2").quantized_weight[0].unique().numel() > 3


@pytest.mark.parametrize(
    ("bits", "part"),
    [({"weight_bits": {"1.conv": 4}}, "'1.conv'"), ({"weight_bits": {"0": 1}}, "of 0"), ({"activation_bits": 1}, "1")],
)
def test_bits_that_do_not_fit_leave_the_model_as_it_was(bits: dict[str, object], part: str) -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig()).train()
    model(torch.randn(4, 1, 4, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=part):
        calibrate(model, [torch.randn(4, 1, 4, 4)], **bits)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_batch_is_an_error_and_changes_nothing() -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig()).train()
    model(torch.randn(4, 1, 4, 4))
    before = {name: (float(quantizer.low), float(quantizer.high)) for name, quantizer in model.quantizers()}
    with pytest.raises(DataError, match="at least one batch"):
        calibrate(model, [])
    assert before == {name: (float(quantizer.low), float(quantizer.high)) for name, quantizer in model.quantizers()}


def test_statistics_of_a_float_model_stay_as_they_are_if_asked() -> None:
    model = prepare(network(), torch.zeros(2, 1, 4, 4), QuantizationConfig())
    norm = model.network.get_submodule("1")
    before = norm.running_mean.clone()
    calibrate(model, [5 + torch.randn(8, 1, 4, 4)], statistics=False)
    assert torch.equal(norm.running_mean, before)
    assert all(int(quantizer.batches) == 1 for _, quantizer in model.quantizers())


def test_a_batch_norm_that_is_called_twice_clips_nothing():
    """Its statistics are those of both inputs together, and ranges are those that come of them."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            left, right = self.norm(self.first(x)), self.norm(20 * self.second(x) + 100)
            return self.head(torch.relu(left + 2 * right).mean((2, 3)))

    torch.manual_seed(0)
    network = Twice()
    model = prepare(network, torch.zeros(2, 2, 8, 8), QuantizationConfig())
    batches = [torch.randn(16, 2, 8, 8) for _ in range(8)]
    assert calibrate(model, iter(batches)) == 8
    calibrated = model.network.get_submodule("norm")
    network.norm.load_state_dict({**network.norm.state_dict(), "running_mean": calibrated.running_mean,
                                  "running_var": calibrated.running_var})  # fmt: skip
    with torch.no_grad():
        expected, got = network.eval()(batches[0]), model.eval()(batches[0])
    assert float((got - expected).abs().max()) < 0.02 * float(expected.abs().max())
