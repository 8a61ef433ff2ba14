"""Random small networks as people write them: layers, functional forms, residuals, hooks, replaced forwards."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = Callable[["Drawn", Tensor], Tensor]

SIDE = 7


class ShiftedReLU(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x - 0.25, 0)."""
        return super().forward(x - 0.25)


class ScaledNorm(nn.BatchNorm2d):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the normalised."""
        return 2 * super().forward(x)


class Drawn(nn.Module):
    """A network of drawn steps."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self.steps: list[Step] = []
        self.words: list[str] = []

    def part(self, module: nn.Module) -> str:
        """Add a module and return its name."""
        name = f"part{len(self.parts)}"
        self.parts[name] = module
        return name

    def then(self, module: nn.Module) -> None:
        """Add a step that calls a module."""
        name = self.part(module)
        self.words.append(repr(module))
        self.steps.append(lambda net, x: net.parts[name](x))

    def extra_repr(self) -> str:
        """Return the steps in words, for examples that fail."""
        return "; ".join(self.words)

    def forward(self, x: Tensor) -> Tensor:
        """Compute all steps."""
        for step in self.steps:
            x = step(self, x)
        return x


def _in_place_sum(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1
    x += y
    return x


def _scale(x: Tensor, number: float) -> None:
    x.mul_(number)


NUMBERS = st.sampled_from([0.25, 0.5, 1.5, 2.0, 3.0])

ACTIVATIONS: dict[str, Callable[[Draw], Any]] = {
    "ReLU": lambda draw: nn.ReLU(inplace=draw(st.booleans())),
    "ReLU6": lambda draw: nn.ReLU6(),
    "Hardtanh": lambda draw: nn.Hardtanh(-draw(NUMBERS), draw(NUMBERS)),
    "Hardtanh from 0": lambda draw: nn.Hardtanh(0.0, draw(NUMBERS)),
    "LeakyReLU": lambda draw: nn.LeakyReLU(draw(NUMBERS)),
    "ELU": lambda draw: nn.ELU(draw(NUMBERS)),
    "CELU": lambda draw: nn.CELU(draw(NUMBERS)),
    "Softplus": lambda draw: nn.Softplus(draw(NUMBERS), draw(st.sampled_from([1.0, 20.0]))),
    "SiLU": lambda draw: nn.SiLU(),
    "Hardswish": lambda draw: nn.Hardswish(),
    "Hardsigmoid": lambda draw: nn.Hardsigmoid(),
    "Sigmoid": lambda draw: nn.Sigmoid(),
    "Tanh": lambda draw: nn.Tanh(),
    "GELU": lambda draw: nn.GELU(approximate=draw(st.sampled_from(["none", "tanh"]))),
    "PReLU": lambda draw: nn.PReLU(),
    "Threshold": lambda draw: nn.Threshold(draw(NUMBERS), draw(NUMBERS)),
    "ShiftedReLU": lambda draw: ShiftedReLU(),
}

FUNCTIONS: dict[str, Callable[[float, float], Callable[[Tensor], Tensor]]] = {
    "relu": lambda a, b: functional.relu,
    "relu method": lambda a, b: lambda x: x.relu(),
    "leaky_relu": lambda a, b: lambda x: functional.leaky_relu(x, negative_slope=a),
    "elu": lambda a, b: lambda x: functional.elu(x, a),
    "hardtanh": lambda a, b: lambda x: functional.hardtanh(x, -a, max_val=b),
    "softplus": lambda a, b: lambda x: functional.softplus(x, beta=a),
    "silu": lambda a, b: functional.silu,
    "hardswish": lambda a, b: functional.hardswish,
    "sigmoid": lambda a, b: torch.sigmoid,
    "tanh": lambda a, b: lambda x: x.tanh(),
    "gelu": lambda a, b: functional.gelu,
    "softmax": lambda a, b: lambda x: x.softmax(1),
    "power": lambda a, b: lambda x: x**2,
    "x + a": lambda a, b: lambda x: x + a,
    "x * a + b": lambda a, b: lambda x: x * a + b,
    "a - x": lambda a, b: lambda x: a - x,
    "x / a": lambda a, b: lambda x: x / a,
    "torch.add(alpha)": lambda a, b: lambda x: torch.add(x, a, alpha=b),
    "torch.add(other=)": lambda a, b: lambda x: torch.add(x, other=a),
    "torch.sub(alpha)": lambda a, b: lambda x: torch.sub(x, a, alpha=b),
    "torch.mul(input=)": lambda a, b: lambda x: torch.mul(input=x, other=a),
    "div(rounding)": lambda a, b: lambda x: torch.div(x, a, rounding_mode="floor"),
    "max_pool2d": lambda a, b: lambda x: functional.max_pool2d(x, 3, stride=1, padding=1),
    "avg_pool2d": lambda a, b: lambda x: functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1),
    "gate": lambda a, b: lambda x: x * functional.adaptive_avg_pool2d(x, 1).sigmoid(),
    "mean": lambda a, b: lambda x: x + x.mean((2, 3), keepdim=True),
    "chunk": lambda a, b: lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda a, b: lambda x: torch.cat(tensors=list(torch.split(x, 1, dim=1)), dim=1),
    "transpose": lambda a, b: lambda x: x.transpose(2, 3).contiguous(),
    "flip": lambda a, b: lambda x: x.flip(1),
    "view": lambda a, b: lambda x: x.view(x.size(0), x.shape[1], -1).reshape(x.shape),
}

SUMS: dict[str, Callable[[float], Callable[[Tensor, Tensor], Tensor]]] = {
    "x + y": lambda a: lambda x, y: x + y,
    "x += y": lambda a: _in_place_sum,
    "add(alpha=1)": lambda a: lambda x, y: torch.add(x, y, alpha=1),
    "add(alpha)": lambda a: lambda x, y: torch.add(input=x, other=y, alpha=a),
    "x - y": lambda a: lambda x, y: x - y,
    "x * y": lambda a: lambda x, y: torch.mul(x, other=y),
    "cat": lambda a: lambda x, y: torch.cat((x, y), dim=1),
    "cat(axis)": lambda a: lambda x, y: torch.cat((y, x), axis=1),  # type: ignore[call-overload]
}


def _act(draw: Draw, net: Drawn) -> None:
    if draw(st.booleans()):
        net.then(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))](draw))
    else:
        name, a, b = draw(st.sampled_from(sorted(FUNCTIONS))), draw(NUMBERS), draw(NUMBERS)
        function = FUNCTIONS[name](a, b)
        net.words.append(f"{name} a={a} b={b}")
        net.steps.append(lambda net, x: function(x))


def _conv(draw: Draw, net: Drawn, channels: int, out: int) -> None:
    groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0 and out % g == 0]))
    dilation = draw(st.integers(1, 2))
    net.then(nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation, groups=groups, bias=draw(st.booleans())))
    if draw(st.booleans()):
        norm = draw(st.sampled_from([nn.BatchNorm2d, nn.BatchNorm2d, ScaledNorm]))
        net.then(norm(out, eps=draw(st.sampled_from([1e-5, 0.1])), momentum=draw(st.sampled_from([0.1, 0.5, None]))))


def _block(draw: Draw, net: Drawn, channels: int) -> int:
    """Add a step; return the number of channels behind it."""
    kind = draw(st.sampled_from(["conv", "conv", "act", "act", "sum", "dropout", "branch"]))
    if kind == "conv":
        out = draw(st.sampled_from([2, 4]))
        _conv(draw, net, channels, out)
        return out
    if kind == "sum":
        inner = Drawn()
        _conv(draw, inner, channels, channels)
        _act(draw, inner)
        name, how = net.part(inner), draw(st.sampled_from(sorted(SUMS)))
        combine = SUMS[how](draw(NUMBERS))
        net.words.append(f"x {how} [{inner.extra_repr()}]")
        net.steps.append(lambda net, x: combine(x, net.parts[name](x)))
        return channels * (2 if "cat" in how else 1)
    if kind == "dropout":
        on = draw(st.sampled_from(["module", "function", "2d", "branch"]))
        net.words.append(f"dropout as {on}")
        if on in ("module", "2d"):
            net.then(nn.Dropout(0.3) if on == "module" else nn.Dropout2d(0.3))
        elif on == "function":
            net.steps.append(lambda net, x: functional.dropout(x, 0.3, net.training))
        else:
            net.steps.append(lambda net, x: functional.dropout(x, 0.3) if net.training else x)
    elif kind == "branch":
        number = draw(NUMBERS)
        net.words.append(f"branch * {number}")
        net.steps.append(lambda net, x: x * number if net.training else x)
    else:
        _act(draw, net)
    return channels


def _tail(draw: Draw, net: Drawn, channels: int) -> None:
    how = draw(st.sampled_from(["mean", "adaptive", "flatten"]))
    net.words.append(f"tail {how}")
    features = channels
    if how == "mean":
        net.steps.append(lambda net, x: x.mean((2, 3)))
    elif how == "adaptive":
        net.then(nn.AdaptiveAvgPool2d(1))
        net.steps.append(lambda net, x: torch.flatten(x, start_dim=1))
    else:
        net.then(nn.AdaptiveAvgPool2d((1, 1)))
        net.then(nn.Flatten())
    if draw(st.booleans()):
        net.then(nn.Linear(features, 6))
        net.then(nn.BatchNorm1d(6))
        net.then(nn.ReLU())
        features = 6
    net.then(nn.Linear(features, 4))


def _peculiar(draw: Draw, net: Drawn) -> None:
    """Put a hook or another forward on some module of a network."""
    where = draw(st.sampled_from(sorted(net.parts)))
    module = net.parts[where]
    kind = draw(st.sampled_from(["nothing"] * 3 + ["hook", "pre-hook", "in place", "observer", "forward"]))
    number = draw(NUMBERS)
    net.words.append(f"{kind} {number} on {where}")
    if kind == "hook":
        module.register_forward_hook(lambda module, given, result: result * number)
    elif kind == "pre-hook":
        module.register_forward_pre_hook(lambda module, given: (given[0] + number,))
    elif kind == "in place":
        module.register_forward_hook(lambda module, given, result: _scale(result, number))
    elif kind == "observer":
        module.register_forward_hook(lambda module, given, result: None)
    elif kind == "forward":
        before = module.forward
        module.forward = lambda x: before(x) * number


@st.composite
def networks(draw: Draw) -> Drawn:
    """Draw a network of inputs (N, 3, SIDE, SIDE) and 4 logits; its parameters follow from a drawn seed."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    net = Drawn()
    channels = 4
    _conv(draw, net, 3, channels)
    for _ in range(draw(st.integers(0, 4))):
        channels = _block(draw, net, channels)
    _peculiar(draw, net)
    _tail(draw, net, channels)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net.train(draw(st.booleans()))
