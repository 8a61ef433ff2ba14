"""Training on codes computes what the modules compute one by one, on every path, and learns the same."""

import copy
import functools
import pickle

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from cpt_deploy.errors import CptWarning
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization import model as model_module
from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.kernels.selection import Selection, load_native
from cpt_deploy.quantization.modules import gradients
from cpt_deploy.quantization.training_step.products import Compute, has_bf16_units

PATHS = [("torch", "float32"), ("torch", "bf16"), ("native", "float32"), ("native", "bf16")]
MODULES = [("torch", "modules"), ("native", "modules")]
#: For tests of what holds on every path, the modules by themselves too.
every_path = pytest.mark.parametrize("path", [*PATHS, *MODULES], ids="-".join, indirect=True)
#: Its gradient is nothing but rounding, since BatchNorm takes the mean away.
BIAS_BEFORE_NORM = "network.0.bias"


@pytest.fixture(params=PATHS, ids="-".join)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compute:
    """Makes models use one backend of kernels; the value is the setting of `compute`."""
    backend, compute = request.param
    if compute == "bf16" and not has_bf16_units():
        pytest.skip("this processor has no bfloat16 units")
    kernels: Kernels | str = TorchKernels() if backend == "torch" else load_native()
    if isinstance(kernels, str):
        pytest.skip(f"no compiled kernels: {kernels}")
    monkeypatch.setattr(model_module, "active", lambda *_: Selection(kernels, native=backend == "native"))
    monkeypatch.setattr(gradients, "kernels_on", lambda device: kernels)
    return compute


class Block(nn.Module):
    """Strided and grouped convolutions, biases before BatchNorm, ReLU6, a sum, pools, a product, Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2, stride=2), nn.BatchNorm2d(8))
        self.plain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False), nn.ReLU())
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.hidden = nn.Sequential(nn.Linear(8 * 16, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(self.narrow(x) + self.wide(x))
        x = functional.max_pool2d(x, 2)
        x = self.same(self.plain(x) * self.gate(x))
        return self.fc(self.hidden(x.flatten(1)))


def prepared(network: nn.Module, shape: tuple[int, ...], **options: object) -> QuantizedModel:
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig(**options)).train()  # type: ignore[arg-type]
    return model.to(memory_format=torch.channels_last)


def step(model: QuantizedModel, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits and gradients of one step of a copy, without what it tracked."""
    model = copy.deepcopy(model)
    logits = model(x)
    (functional.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1]) * scale).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def single_layer(**options: object) -> QuantizedModel:
    """A convolution with BatchNorm and ReLU: what it computes does not hang on how the layers before it rounded."""
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    return prepared(network, (3, 8, 8), **options)


def both(model: QuantizedModel, compute: Compute) -> tuple[QuantizedModel, QuantizedModel]:
    paths = copy.deepcopy(model), copy.deepcopy(model)
    paths[0].compute, paths[1].compute = compute, "modules"
    return paths


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), StochasticDepth(0.5, "row")], ids=["dropout", "stochastic depth"])
def test_what_is_dropped_in_training_scales_the_rest_off_the_qparams(path: Compute, drop: nn.Module) -> None:
    torch.manual_seed(0)
    model = prepared(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), drop, nn.Linear(40, 3)), (6,))
    fast, modules = both(model, path)
    x = torch.randn(64, 6)
    results = []
    for each in (fast, modules):
        torch.manual_seed(1)
        results.append(each(x).detach())
    width = float(results[1].max() - results[1].min())
    assert torch.allclose(results[0], results[1], atol=3 * width / 255)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_layer_gives_the_codes_that_its_modules_give(path: Compute, bits: int) -> None:
    torch.manual_seed(0)
    model = single_layer(min_bits=2, ends="scheduled")
    model.set_bits(bits, 8)
    fast, modules = both(model, path)
    x = torch.randn(16, 3, 8, 8)
    found, expected = fast(x).detach(), modules(x).detach()
    width = float(expected.max() - expected.min())
    assert torch.allclose(found, expected, atol=1.01 * width / (2**bits - 1))  # a code may stand on the edge of two
    assert (found - expected).abs().mean() < 0.02 * width / (2**bits - 1)
    for (name, a), (_, b) in zip(fast.named_buffers(), modules.named_buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), name


def test_a_layers_gradients_are_those_of_its_modules(path: Compute) -> None:
    torch.manual_seed(1)
    fast, modules = both(single_layer(), path)
    x = torch.randn(16, 3, 8, 8)
    (_, found), (_, expected) = step(fast, x), step(modules, x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if name != BIAS_BEFORE_NORM:
            assert (found[name] - gradient).norm() < 0.02 * gradient.norm(), name


def test_every_kind_of_operation_runs_and_gives_a_similar_result(path: Compute) -> None:
    torch.manual_seed(0)
    model = prepared(Block(), (3, 16, 16))
    model.set_bits(6, 8)
    fast, modules = both(model, path)
    x = torch.randn(32, 3, 16, 16)
    (logits, found), (expected_logits, expected) = step(fast, x), step(modules, x)
    assert (logits - expected_logits).norm() < 0.1 * expected_logits.norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient.dim() > 1 or name == "network.fc.bias":
            assert functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.9, name


class Residual(nn.Module):
    """A Linear whose output another Linear and a sum in float read, as an embedding's projection in a Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.inner, self.norm, self.fc = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return self.fc(self.norm(x + self.inner(x)))


def test_a_layer_that_others_read_in_float_gives_what_its_modules_give(path: Compute) -> None:
    torch.manual_seed(0)
    coded, modules = both(prepared(Residual(), (6,)), path)
    x = torch.randn(32, 6)
    (logits, gradients_of_codes), (expected, gradients_of_modules) = step(coded, x), step(modules, x)
    assert torch.allclose(logits, expected, atol=0.05)
    for name, gradient in gradients_of_modules.items():
        assert (gradients_of_codes[name] - gradient).norm() < 0.1 * gradient.norm(), name


@functools.cache
def draws(compute: Compute, count: int = 150) -> Tensor:
    """Gradients of one weight at 4 bits, with as many seeds of the noise."""
    torch.manual_seed(0)
    model, x = single_layer(), torch.randn(8, 3, 8, 8)
    model.compute = compute
    model.set_bits(8, 4)
    samples = []
    for number in range(count):
        model.set_step(number)
        samples.append(step(model, x)[1]["network.0.weight"])
    return torch.stack(samples)


def test_rounding_of_gradients_is_unbiased_with_the_same_variance(path: Compute) -> None:
    torch.manual_seed(0)
    model, x = single_layer(), torch.randn(8, 3, 8, 8)
    model.compute = "modules"
    model.set_bits(8, 32)
    exact = step(model, x)[1]["network.0.weight"]
    found, expected = draws.__wrapped__(path), draws("modules")
    deviation = expected.std(dim=0)
    assert torch.all((found.mean(dim=0) - exact).abs() < 5 * deviation / 150**0.5 + 0.005 * exact.abs().max())
    assert float(found.std(dim=0).mean() / deviation.mean()) == pytest.approx(1.0, abs=0.05)


@functools.cache
def smoothed_losses(compute: Compute) -> Tensor:
    """Means over 20 steps each of the losses of 200 steps on digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = prepared(build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8), width=8), (1, 8, 8))
    model.compute = compute
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = []
    for number in range(200):
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))[:24]
        model.set_bits(3 + number % 6, 8)
        model.set_step(number)
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history).view(10, 20).mean(dim=1)


def test_losses_of_200_steps_agree_with_the_modules(path: Compute) -> None:
    """The bounds: from 2.3 on down, means over 20 steps differ by less than 0.2, those over 200 by less than 0.06.

    A code that rounds the other way changes what follows as other noise would, so single losses do not agree.
    """
    found, expected = smoothed_losses.__wrapped__(path), smoothed_losses("modules")
    assert found[-1] < 0.5
    assert (found - expected).abs().max() < 0.2
    assert (found.mean() - expected.mean()).abs() < 0.06


@every_path
@pytest.mark.parametrize("scale", [1e-8, 1e-20])
def test_tiny_gradients_keep_their_resolution(path: Compute, scale: float) -> None:
    torch.manual_seed(0)
    model = single_layer()
    model.compute = path
    x = torch.randn(8, 3, 8, 8)
    (_, tiny), (_, usual) = step(model, x, scale=scale), step(model, x)
    for name, gradient in usual.items():
        if name != BIAS_BEFORE_NORM:
            assert torch.allclose(tiny[name] / scale, gradient, rtol=0.05, atol=0.01 * float(gradient.abs().max())), (
                name
            )


@every_path
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_reaches_the_loss_and_the_gradients(path: Compute, value: float) -> None:
    model = prepared(Block(), (3, 16, 16))
    model.compute = path
    x = torch.randn(4, 3, 16, 16)
    x[2, 1, 3, 3] = value
    logits, gradients = step(model, x)
    assert not torch.isfinite(logits).all()
    assert not torch.isfinite(gradients["network.stem.0.weight"]).all()


@every_path
def test_a_gradient_that_is_not_a_number_stays_none(path: Compute) -> None:
    model = single_layer()
    model.compute = path
    model(torch.randn(4, 3, 8, 8)).sum().mul(float("nan")).backward()
    assert all(not torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_compiled_kernels_and_plain_torch_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    native = load_native()
    if isinstance(native, str):
        pytest.skip(f"no compiled kernels: {native}")
    torch.manual_seed(0)
    model = single_layer()
    model.compute = "float32"
    x = torch.randn(8, 3, 8, 8)
    results = []
    for kernels in (native, TorchKernels()):
        monkeypatch.setattr(model_module, "active", lambda *_, kernels=kernels: Selection(kernels, native=True))
        results.append(step(model, x))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    for name, gradient in results[1][1].items():
        assert torch.allclose(results[0][1][name], gradient, rtol=1e-2, atol=1e-5), name


def test_only_training_of_codes_takes_the_program(path: Compute) -> None:
    model = single_layer()
    model.compute = path
    x = torch.randn(4, 3, 8, 8)

    def fused() -> bool:
        return model.execution_path(x).fused

    assert fused()
    with torch.no_grad():
        assert not fused()
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused()
    model.set_bits(16, 8)
    assert not fused()
    model.set_bits(8, 16)
    assert not fused()
    model.set_bits(8, 8)
    assert fused()
    model.eval()
    assert not fused()


def test_hooks_and_frozen_statistics_run_module_by_module(path: Compute) -> None:
    model = single_layer()
    model.compute = path
    calls = []
    handle = model.get_submodule("network.1").register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(CptWarning, match="forward hook on '1'"):
        model(torch.randn(4, 3, 8, 8))
    assert calls
    handle.remove()
    norm = model.get_submodule("network.1").eval()
    before = norm.running_mean.clone()
    with pytest.warns(CptWarning, match="'1' is in evaluation mode"):
        model(torch.randn(4, 3, 8, 8))
    assert torch.equal(norm.running_mean, before)


def test_copies_and_pickles_leave_the_program_out_and_state_dicts_do_not_know_it(path: Compute) -> None:
    model = single_layer()
    model.compute = path
    names = list(model.state_dict())
    x = torch.randn(4, 3, 8, 8)
    model(x)
    assert list(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = other.get_submodule("network.1").running_mean.clone()
        model(x)
        assert torch.equal(other.get_submodule("network.1").running_mean, before)
        assert torch.isfinite(other(x)).all()


def test_a_model_of_another_type_is_left_to_its_modules() -> None:
    """The kernels read float32, and would take other weights for it."""
    model = prepare(nn.Sequential(nn.Linear(6, 4)), torch.zeros(2, 6), QuantizationConfig()).train().double()
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(2, 6))
