"""`prepare` takes a network as it was handed in: what hooks and replaced forwards do converts, or is named."""

import copy
import random
import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from cpt_deploy.errors import ConversionError, CptWarning, UsageError
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.conversion.comparison.equivalence import float_bits

SHAPE = (3, 8, 8)


class Small(nn.Module):
    """A convolution and a head, with something between that subclasses say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.act: nn.Module = nn.ReLU()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.between(self.act(self.bn(self.conv(x)))).mean((2, 3)))
        return logits

    def between(self, y: Tensor) -> Tensor:
        return y


def with_step(step: Callable[[Small, Tensor], Tensor]) -> Small:
    network: Small = type("Net", (Small,), {"between": step})()
    return network


def with_hook(path: str, hook: Callable[..., object], *, before: bool = False) -> Small:
    network = Small()
    module = network.get_submodule(path)
    (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)  # type: ignore[arg-type]
    return network


def with_forward(path: str) -> Small:
    network = Small()
    module = network.get_submodule(path)
    before = module.forward
    module.forward = lambda x: before(x) * 1.5 + 0.5
    return network


def with_method() -> Small:
    network = Small()
    network.forward = types.MethodType(lambda self, x: Small.forward(self, x) * 2, network)  # type: ignore[method-assign]
    return network


def with_part(name: str, module: nn.Module) -> Small:
    network = Small()
    setattr(network, name, module)
    return network


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.3)


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Head(Small):
    """Its logits are all alike at the beginning, which hides all that comes before."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def between(self, y: Tensor) -> Tensor:
        return torch.add(y, 1.0, alpha=3.0)


def half_in_training(self: Small, y: Tensor) -> Tensor:
    return y * 0.5 if self.training else y


def in_place(module: nn.Module, given: object, result: Tensor) -> None:
    result.mul_(2)


CONVERTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (Small, "integers"),
    "alpha": (lambda: with_step(lambda self, y: torch.add(y, 1.0, alpha=3.0)), "integers"),
    "alpha before zeros": (Head, "integers"),
    "alpha of tensors": (lambda: with_step(lambda self, y: torch.add(y, y, alpha=3.0)), "float parts"),
    "rounded quotient": (lambda: with_step(lambda self, y: torch.div(y, 0.5, rounding_mode="floor")), "float parts"),
    "by name": (lambda: with_step(lambda self, y: torch.mul(input=y, other=2.0)), "integers"),
    "chunks": (lambda: with_step(lambda self, y: torch.cat(y.chunk(3, 1)[::-1], dim=1)), "integers"),
    "softplus": (lambda: with_part("act", nn.Softplus(beta=5)), "float parts"),
    "threshold": (lambda: with_part("act", nn.Softplus(threshold=1)), "float parts"),
    "softplus function": (lambda: with_step(lambda self, y: functional.softplus(y, 5)), "float parts"),
    "hook": (lambda: with_hook("conv", lambda module, given, result: result * 2), "integers"),
    "hook on norm": (lambda: with_hook("bn", lambda module, given, result: result + 1), "integers"),
    "hook in place": (lambda: with_hook("conv", in_place), "integers"),
    "hook on the network": (lambda: with_hook("", lambda module, given, result: result.softmax(1)), "float parts"),
    "pre-hook": (lambda: with_hook("bn", lambda module, given: (given[0] * 3,), before=True), "integers"),
    "forward of a layer": (lambda: with_forward("conv"), "integers"),
    "forward of an activation": (lambda: with_forward("act"), "integers"),
    "forward of a norm": (lambda: with_forward("bn"), "float parts"),
    "forward of the network": (with_method, "integers"),
    "subclass": (lambda: with_part("act", Shifted()), "integers"),
    "subclass of a norm": (lambda: with_part("bn", Doubled(6)), "float parts"),
    "dropout in a branch": (
        lambda: with_step(lambda self, y: functional.dropout(y, 0.3) if self.training else y),
        "integers",
    ),
    "dropout that is off": (lambda: with_step(lambda self, y: functional.dropout(y, 0.3, False)), "integers"),
    "stochastic depth": (lambda: with_part("act", StochasticDepth(0.5, "row")), "integers"),
    "alpha dropout": (lambda: with_part("act", nn.AlphaDropout(0.2)), "float parts"),
    "random slope": (lambda: with_part("act", nn.RReLU()), "float parts"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::cpt_deploy.errors.CptWarning")
@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_handed_in_is_what_trains(name: str) -> None:
    make, path = CONVERTED[name]
    torch.manual_seed(0)
    network = make().train()
    before = copy.deepcopy(network.state_dict())
    states = torch.get_rng_state(), random.getstate()
    model = prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    assert model.conversion.path == path
    assert (model.conversion.reason is None) == (path == "integers")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    x = 2 * torch.randn(5, *SHAPE)
    for training in (True, False):
        torch.manual_seed(1)
        with torch.no_grad():
            expected = network.train(training)(x.clone())
        with torch.no_grad(), float_bits(model):
            torch.manual_seed(1)
            got = model.train(training)(x.clone())
            assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))
            for buffer, value in network.named_buffers():
                if training and buffer in dict(model.network.named_buffers()):
                    assert torch.allclose(model.network.get_buffer(buffer), value, rtol=1e-4, atol=1e-5)
        network.load_state_dict(before)


class Counting(Small):
    """It computes something else at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def between(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y * self.calls


class Frozen(Small):
    """Its BatchNorm is never in training."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.bn.eval()
        return self


class Masked(Counting):
    """It has a logit that is no number of interest."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1e9)], 1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: with_step(half_in_training), "in training its values differ from operation 'mul'"),
        (lambda: with_step(lambda self, y: functional.dropout(y, 0.2)), "in evaluation .* 'dropout'"),
        (Counting, "operation 'mul'"),
        (Masked, "operation 'mul'"),
        (Frozen, "in training .* 'batch_norm' in module 'bn'"),
    ],
    ids=["branch", "dropout", "counter", "masked", "frozen"],
)
def test_what_cannot_be_kept_is_named(make: Callable[[], nn.Module], named: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConversionError, match=named) as raised:
        prepare(make(), torch.zeros(2, *SHAPE), QuantizationConfig())
    assert raised.value.hint


def test_a_network_of_other_results_in_training_is_refused() -> None:
    class Auxiliary(Small):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return (logits, logits) if self.training else logits  # type: ignore[return-value]

    with pytest.raises(ConversionError, match="returns others in training"):
        prepare(Auxiliary(), torch.zeros(2, *SHAPE), QuantizationConfig())


def test_a_hook_that_only_looks_on_is_left_out_and_said() -> None:
    seen: list[tuple[int, ...]] = []
    network = with_hook("conv", lambda module, given, result: seen.append(tuple(result.shape)))
    with pytest.warns(CptWarning, match="the forward hook on module 'conv' does not change the network's computation"):
        model = prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    assert model.conversion.dropped_hooks == ("the forward hook on module 'conv'",)
    seen.clear()
    model(torch.randn(2, *SHAPE))
    assert not seen
    network(torch.randn(2, *SHAPE))
    assert seen == [(2, 6, 8, 8)]


def test_the_reason_names_the_operation_and_its_module() -> None:
    model = prepare(with_part("act", nn.GELU()), torch.zeros(2, *SHAPE), QuantizationConfig())
    assert model.conversion.reason == "GELU in module 'act' has no integer form"
    assert "float between the layers" in model.conversion.in_words


# --- forgetting is said ---------------------------------------------------------------------------------------------


def train_steps(model: QuantizedModel, numbers: list[int | None]) -> None:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    for number in numbers:
        if number is not None:
            model.set_step(number)
        optimizer.zero_grad()
        model(torch.randn(4, *SHAPE)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("compute", ["modules", "float32"])
@pytest.mark.parametrize(("numbers", "warned"), [([0, 1, 2], False), ([None, None, None], True), ([5, 5, 5], True)])
def test_steps_of_one_number_are_said_once(compute: str, numbers: list[int | None], warned: bool) -> None:
    model = prepare(Small(), torch.zeros(2, *SHAPE), QuantizationConfig())
    model.compute = compute  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train_steps(model, numbers)
    assert [entry.category for entry in found] == [CptWarning] * warned
    assert all("set_step" in str(entry.message) for entry in found)


def test_the_same_step_on_the_same_weights_is_no_mistake() -> None:
    model = prepare(Small(), torch.zeros(2, *SHAPE), QuantizationConfig()).train()
    for _ in range(3):
        model(torch.randn(4, *SHAPE)).square().mean().backward()


def test_hooks_that_slow_training_down_are_named_once() -> None:
    model = prepare(Small(), torch.zeros(2, *SHAPE), QuantizationConfig())
    model.compute = "float32"
    model.network.get_submodule("bn").register_forward_hook(lambda module, given, result: None)
    with pytest.warns(CptWarning, match="there is a forward hook on 'bn'") as found:
        train_steps(model, [0, 1, 2])
    assert len(found) == 1


@pytest.mark.parametrize("bits", [3.7, 3.0, "4", True, None, 1, 33])
def test_bits_are_whole_numbers(bits: object) -> None:
    model = prepare(Small(), torch.zeros(2, *SHAPE), QuantizationConfig())
    with pytest.raises(UsageError, match="to be whole numbers from 2 to 32, but got"):
        model.set_bits(bits, 8)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whole numbers"):
        QuantizationConfig(min_bits=2.5)  # type: ignore[arg-type]
