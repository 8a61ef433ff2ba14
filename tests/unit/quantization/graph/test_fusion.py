"""What fuses is decided once: a pattern that is added there is taken by preparing, training, freezing and export."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cpt_deploy.bundle.runtime.operators import float_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_symmetric, prepare
from cpt_deploy.quantization.graph import fusion
from cpt_deploy.quantization.graph.fusion import FusedOperation, fused_operations
from cpt_deploy.quantization.graph.operator_kinds import Kind
from cpt_deploy.quantization.kernels import Clamp

SHAPE = (3, 8, 8)


class Written(nn.Module):
    """Two convolutions with BatchNorm and a Linear, in a function that says how they follow each other."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))
        self.fc, self.function = nn.Linear(8, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, x).mean([2, 3]))


def prepared(network: nn.Module) -> QuantizedModel:
    torch.manual_seed(0)
    return prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig()).train()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, *SHAPE, generator=generator) for _ in range(count)]


def step(model: QuantizedModel) -> tuple[Tensor, Tensor]:
    """Logits of a step and the gradient of the first layer's weight."""
    logits = model(batches(1)[0])
    functional.cross_entropy(logits, torch.arange(16) % 5).backward()
    return logits.detach(), next(model.parameters()).grad  # type: ignore[return-value]


def frozen(model: QuantizedModel, in_float: str = "") -> IntegerGraph:
    """The integers of a calibrated model, which onnxruntime must come to as well, with no other operator in float."""
    calibrate(model, batches())
    graph = freeze(model)
    data, x = write_onnx(graph), batches(4)[-1]
    session = open_session(data)
    (served,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.array_equal(IntegerExecutor(graph)(x).numpy(), served)
    assert set(float_operators(data)) <= {in_float}
    return graph


def names(operation: FusedOperation) -> list[str]:
    return [node.name for node in operation.nodes]


def leaky(net: Written, x: Tensor) -> Tensor:
    return functional.leaky_relu(net.a(x), 0.0) + functional.leaky_relu(net.b(x), 0.0)


@pytest.fixture
def leaky_relu_of_slope_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that does not exist: the one edit that adds it."""
    found = lambda module: Clamp(0.0) if module.negative_slope == 0 else None  # noqa: E731
    monkeypatch.setitem(fusion.CLAMPS, nn.LeakyReLU, found)


def test_without_the_pattern_the_activation_is_an_operation_of_its_own() -> None:
    model = prepared(Written(leaky))
    assert [len(o.nodes) for o in fused_operations(model.network) if o.kind is Kind.LAYER] == [2, 2, 1]
    assert [type(o).__name__ for o in frozen(model).operations].count("Lookup") == 2


@pytest.mark.usefixtures("leaky_relu_of_slope_0")
def test_a_pattern_that_is_added_is_taken_everywhere() -> None:
    model, by_relu = prepared(Written(leaky)), prepared(Written(lambda n, x: n.a(x).relu() + n.b(x).relu()))
    layers = [o for o in fused_operations(model.network) if o.kind is Kind.LAYER]
    assert [len(o.nodes) for o in layers] == [3, 3, 1]
    assert all(o.quantizer is not None for o in layers)
    assert len(list(model.quantizers())) == len(
        list(by_relu.quantizers())
    )  # no quantizer between BatchNorm and activation
    for compute in ("float32", "modules"):  # the fused step computes a ReLU, bit by bit
        for each in (model, by_relu):
            each.compute = compute  # type: ignore[assignment]
            each.zero_grad()
        assert model.execution_path().compute == compute
        assert all(torch.equal(a, b) for a, b in zip(step(model), step(by_relu), strict=True))
    assert len(model._fused_step()._steps) == len(by_relu._fused_step()._steps)
    found, expected = frozen(model), frozen(by_relu)
    assert [type(o) for o in found.operations] == [type(o) for o in expected.operations]
    for a, b in zip(found.weighted(), expected.weighted(), strict=True):
        assert np.array_equal(a.codes, b.codes)
        assert np.array_equal(a.bias, b.bias)


@pytest.mark.parametrize("symmetric", [False, True], ids=["unsigned", "symmetric"])
@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (Kind.CONCATENATE, lambda net, x: functional.relu(torch.cat([net.a(x), net.b(x)], 1)).chunk(2, 1)[0]),
        (Kind.AVERAGE, lambda net, x: functional.relu6(functional.avg_pool2d(net.a(x), 2))),
        (Kind.GLOBAL_AVERAGE, lambda net, x: functional.relu(functional.adaptive_avg_pool2d(net.a(x), 1))),
        (Kind.ADD, lambda net, x: torch.clamp(net.a(x) + net.b(x), 0, 1.5)),
        (Kind.MULTIPLY, lambda net, x: functional.relu(net.a(x) * net.b(x))),
        (Kind.CONSTANT, lambda net, x: functional.relu(functional.max_pool2d(net.a(x), 2) * -0.5 + 0.1)),
        (Kind.LAYER, lambda net, x: functional.hardtanh(net.a(x), 0.0, 0.7)),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Kind) else "",
)
def test_a_clamp_is_part_of_what_it_follows(kind: Kind, function: Any, symmetric: bool) -> None:
    model = prepared(Written(function))
    assert model.conversion.path == "integers"
    (clamped,) = (o for o in fused_operations(model.network) if o.clamps)
    assert clamped.kind is kind
    if symmetric:  # a ReLU is an operation of its own there, since the least code is not real zero
        make_symmetric(model)
    tables = [type(o).__name__ for o in frozen(model, "Relu" if symmetric else "").operations].count("Lookup")
    assert tables == (1 if symmetric else 0)


def test_beside_operations_in_float_a_clamp_is_part_of_a_convolution() -> None:
    def function(net: Written, x: Tensor) -> Tensor:
        return functional.gelu(net.a(x).clamp(0, 1.5) + net.b(x).clamp_min(0))

    model = prepared(Written(function))
    assert model.conversion.path == "float parts"
    layers = [o for o in fused_operations(model.network) if o.kind is Kind.LAYER]
    assert [o.clamp for o in layers] == [Clamp(0.0, 1.5), Clamp(0.0), Clamp()]
    calibrate(model, batches())
    calls = [getattr(o, "target", "") for o in freeze(model).operations]
    assert not any("clamp" in target for target in calls)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: torch.clamp(net.a(x), -1, 1),  # real zero is not its least code
        lambda net, x: functional.relu(functional.max_pool2d(net.a(x), 2)),
        lambda net, x: (y := net.a(x)) + functional.relu(y),  # another reads what lies between
    ],
    ids=["bounds around zero", "pool between", "two readers"],
)
def test_what_does_not_follow_alone_is_no_part(function: Any) -> None:
    model = prepared(Written(function))
    assert not any(o.clamps for o in fused_operations(model.network))
    assert "Lookup" in [type(o).__name__ for o in frozen(model, "Clip").operations]


def test_the_same_operations_are_found_before_and_after_quantizers_are_in_the_graph(monkeypatch) -> None:
    from cpt_deploy.quantization.conversion import activation_quantizers

    before: list[list[str]] = []

    def listening(traced: fx.GraphModule) -> list[FusedOperation]:
        found = fused_operations(traced)
        before.append([name for operation in found for name in names(operation)])
        assert all(operation.quantizer is None for operation in found)
        return found

    monkeypatch.setattr(activation_quantizers, "fused_operations", listening)
    model = prepared(Written(lambda net, x: functional.relu(net.a(x) + functional.relu6(net.b(x)))))
    after = fused_operations(model.network)
    assert before == [[name for operation in after for name in names(operation)]]
    assert all(operation.quantizer is not None for operation in after)


@pytest.mark.parametrize("floats", [False, True], ids=["integers", "float parts"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_and_pickles_have_the_same_operations(how: str, floats: bool) -> None:
    act = functional.gelu if floats else functional.relu
    model = prepared(Written(lambda net, x: act(net.a(x).relu() + net.b(x))) if how == "deepcopy" else Pickled(floats))
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    expected, found = fused_operations(model.network), fused_operations(other.network)
    nodes = set(other.network.graph.nodes)
    assert [names(o) for o in found] == [names(o) for o in expected]
    for ours, theirs in zip(expected, found, strict=True):
        assert (ours.kind, ours.clamp, ours.norm is None) == (theirs.kind, theirs.clamp, theirs.norm is None)
        assert set(theirs.nodes) <= nodes
        assert theirs.norm is None or theirs.norm is not ours.norm
    for each in (model, other):
        calibrate(each, batches())  # rounds offsets to the grids of the biases
    x = batches(1)[0]
    assert torch.equal(model.eval()(x), other.eval()(x))


class Pickled(nn.Module):
    """One that has no functions as attributes."""

    def __init__(self, floats: bool) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6())
        self.b = nn.Sequential(nn.GELU() if floats else nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))
