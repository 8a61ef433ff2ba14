"""`prepare`: where quantizers stand, which group they have, and what it says of models that it cannot take."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize


def tiny(**options: object) -> QuantizedModel:
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    return prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig(**options))  # type: ignore[arg-type]


class Mixture(nn.Module):
    """In-place operations, functional forms, a shared activation, constants, chunks and reshapes in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(4, 8, 1)
        self.standalone = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        y = self.depthwise(x)
        y += x
        self.act(y)  # overwrites y
        left, right = y.chunk(2, dim=1)
        n, _, h, w = y.size()
        y = torch.cat((self.pointwise(left), functional.hardswish(right)), 1)
        y = y.view(n, 2, 6, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        y = functional.max_pool2d(y * 0.5 + 1, 2)
        y = functional.relu6(self.standalone(functional.silu(y)))
        y = functional.dropout(functional.adaptive_avg_pool2d(y, 1).flatten(1), 0.1, self.training)
        return self.fc(y)


def randomised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network.eval()


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (Mixture, 8),
        (lambda: build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), 32),
        (lambda: build_model("mobilenetv2", num_classes=10, in_channels=3, input_size=(32, 32)), 32),
        (lambda: get_model("efficientnet_b0", weights=None), 64),
        (lambda: get_model("shufflenet_v2_x0_5", weights=None), 64),
        (lambda: get_model("densenet121", weights=None), 64),
    ],
    ids=["mixture", "resnet20", "mobilenetv2", "efficientnet", "shufflenet", "densenet"],
)
def test_with_float_bits_the_prepared_model_computes_what_the_model_computes(network, size) -> None:
    torch.manual_seed(0)
    float_model = randomised(network())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = copy.deepcopy(float_model)(x.clone())
        prepared = prepare(float_model, torch.zeros(2, 3, size, size), QuantizationConfig(min_bits=32, max_bits=32))
        assert torch.allclose(prepared(x), expected, rtol=1e-3, atol=1e-4)


def test_the_float_model_is_left_as_it_was() -> None:
    network = Mixture()
    before = copy.deepcopy(network.state_dict())
    model = prepare(network, torch.zeros(2, 3, 8, 8), QuantizationConfig()).train()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert isinstance(network.act, nn.ReLU)
    assert network.act.inplace
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_first_and_last_layer_hold_the_upper_bound_unless_told_otherwise() -> None:
    groups = [layer.group for layer in tiny().layers()]
    assert groups[0] == groups[-1] == "fixed"
    assert set(groups[1:-1]) == {"scheduled"}
    assert {layer.group for layer in tiny(ends="scheduled").layers()} == {"scheduled"}


def test_macs_are_those_of_the_published_network() -> None:
    network = get_model("resnet18", weights=None)
    model = prepare(network, torch.zeros(2, 3, 224, 224), QuantizationConfig())
    assert sum(layer.macs for layer in model.layers()) == pytest.approx(1.814e9, rel=1e-3)  # published 1.81 GFLOPs


def test_cycling_weights_and_activations_take_the_current_bits_and_held_ones_do_not() -> None:
    model = tiny(min_bits=2, max_bits=8).train()
    model.compute = "modules"
    model.set_bits(3, 8)
    values: dict[str, int] = {}

    def record(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            values[name] = len(output.unique())

        return hook

    quantizers = dict(model.quantizers())
    for name, quantizer in quantizers.items():
        quantizer.register_forward_hook(record(name))
    inputs = [m for m in model.modules() if isinstance(m, Requantize)]
    for i, module in enumerate(inputs):
        module.register_forward_hook(record(f"input {i}"))
    model(torch.randn(32, 1, 8, 8))
    scheduled = [name for name, quantizer in quantizers.items() if quantizer.group == "scheduled"]
    held = [name for name, quantizer in quantizers.items() if quantizer.group == "fixed"]
    assert scheduled
    assert inputs
    assert all(values[name] <= 8 for name in scheduled)
    assert all(values[f"input {i}"] <= 8 for i in range(len(inputs)))
    assert all(values[name] > 8 for name in held)


def test_at_the_upper_bound_a_layer_input_changes_nothing() -> None:
    model = tiny().train()
    x = torch.randn(8, 1, 8, 8)
    with model.at_max_bits():
        model(x)
        source = next(m for m in model.modules() if isinstance(m, Requantize))
        y = source.source(torch.randn(8, 3, 4, 4))
        assert torch.equal(source(y), y)


def test_the_upper_bound_context_restores_the_bits_even_after_an_error() -> None:
    model = tiny()
    model.set_bits(3, 6)
    with model.at_max_bits():
        assert model.precision.weight_bits["scheduled"] == 8
    with pytest.raises(RuntimeError), model.at_max_bits():
        model(torch.randn(1, 7, 8, 8))
    assert model.precision.weight_bits["scheduled"] == 3
    assert model.precision.gradient_bits == 6


@pytest.mark.parametrize("bits", [(1, 8), (3, 1), (33, 8)])
def test_bits_out_of_range_are_refused(bits: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="bits"):
        tiny().set_bits(*bits)


@pytest.mark.parametrize("bounds", [(1, 8), (8, 3), (3, 40)])
def test_bounds_out_of_order_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="min_bits"):
        QuantizationConfig(min_bits=bounds[0], max_bits=bounds[1])


def test_gradients_are_quantized_and_reproducible() -> None:
    torch.manual_seed(0)
    model = tiny().train()
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10

    def gradients(step: int, bits: int) -> Tensor:
        model.zero_grad()
        model.set_step(step)
        model.set_bits(8, bits)
        functional.cross_entropy(model(x), y).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert torch.equal(gradients(1, 8), gradients(1, 8))
    assert not torch.equal(gradients(1, 8), gradients(2, 8))
    exact, coarse = gradients(1, 32), gradients(1, 8)
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.98
    assert not torch.equal(exact, coarse)


def test_the_state_dict_is_plain_tensors_and_restores_the_model() -> None:
    torch.manual_seed(0)
    model = tiny().train()
    model(torch.randn(8, 1, 8, 8))
    state = model.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    assert not any("quant_max" in key or "source" in key for key in state)
    other = tiny()
    other.load_state_dict(state)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_deep_copy_is_independent() -> None:
    model = tiny().train()
    model(torch.randn(8, 1, 8, 8))
    twin = copy.deepcopy(model)
    twin.set_bits(3, 8)
    assert model.precision.weight_bits["scheduled"] == 8
    twins = [module for module in twin.modules() if isinstance(module, Requantize)]
    own = {id(quantizer) for quantizer in twin.modules() if isinstance(quantizer, ActivationQuantizer)}
    assert all(id(module.source) in own for module in twins)


class _Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.fc(x), dim=1)


class _Branch(_Softmax):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class _Text(_Softmax):
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.fc(x), self.fc


class _Loss(_Softmax):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.fc(x)
        return {"loss": logits.mean(), "logits": logits}


class _Shape(_Softmax):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.fc(x), x.shape[0]


class _Indices(_Softmax):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.fc(x)
        return {"logits": logits, "best": logits.argmax(1)}


@pytest.mark.parametrize(
    ("network", "shape", "named"),
    [
        (_Branch(), (4,), "traced"),
        (_Text(), (4,), "returns a Linear"),
        (_Loss(), (4,), "batch dimension first"),
        (_Shape(), (4,), "always returns the same structure of tensors"),
        (_Indices(), (4,), "floating-point"),
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose3d(2, 1, 3)), (1, 8, 8, 8), "conv3d.*module '0'"),
        (nn.Sequential(nn.ReLU()), (4,), "at least one"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), (1, 8, 8), "shape"),
    ],
    ids=["branch", "module", "scalar", "size", "integers", "three dimensions", "empty", "channels"],
)
def test_what_cannot_be_converted_is_named(network: nn.Module, shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ConversionError, match=named):
        prepare(network, torch.zeros(2, *shape), QuantizationConfig())


class _Shifted(nn.Module):
    """Its first node is called `add`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + 0.5).mean((2, 3))


def test_names_that_every_module_has_are_avoided() -> None:
    x = torch.randn(2, 1, 8, 8)
    network = _Shifted().eval()
    model = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig(min_bits=32, max_bits=32)).eval()
    assert torch.allclose(model(x), network(x), atol=1e-6)
