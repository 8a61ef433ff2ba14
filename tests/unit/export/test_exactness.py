"""The integer executor against onnxruntime: every code of every tensor, bit for bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.export import write_onnx
from cpt_deploy.export.programs import load_program, write_torchscript
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import LayerGroup, QuantizationConfig, WeightBits, calibrate, prepare


def frozen(
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    max_bits: int = 8,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    seed: int = 0,
    groups: tuple[LayerGroup, ...] = (),
) -> IntegerGraph:
    """Freeze a network with random weights, BatchNorms with both signs, and ranges from random data."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.weight.data *= torch.where(torch.rand_like(module.weight) < 0.1, -1.0, 1.0)
    model = prepare(
        network, torch.zeros(2, *shape), QuantizationConfig(min_bits=min(3, max_bits), max_bits=max_bits, groups=groups)
    )
    bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    calibrate(model, [torch.randn(4, *shape) for _ in range(2)], **bits)
    return freeze(model, **bits)


def with_all_codes(model: bytes, names: list[str]) -> bytes:
    proto = onnx.load_model_from_string(model)
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    return bytes(proto.SerializeToString())


def run_onnxruntime(model: bytes, x: Tensor, names: list[str], threads: int = 1) -> dict[str, np.ndarray]:
    session = open_session(model, threads=threads)
    return dict(zip(names, session.run(names, {"image": x.numpy()}), strict=True))


def assert_exact(graph: IntegerGraph, x: Tensor, threads: int = 1) -> None:
    names = list(graph.tensors)
    model = with_all_codes(write_onnx(graph), names)
    served = run_onnxruntime(model, x, [*names, "logits"], threads)
    executor = IntegerExecutor(graph)
    codes = executor.trace(x)
    differing = {name: int((codes[name].numpy() != served[name]).sum()) for name in names}
    assert not {name: count for name, count in differing.items() if count}
    assert np.array_equal(executor(x).numpy(), served["logits"])
    # what is served is the file without these extra outputs
    assert np.array_equal(run_onnxruntime(write_onnx(graph), x, ["logits"])["logits"], served["logits"])
    # the traced executor is a file of its own
    assert np.array_equal(load_program("torchscript", write_torchscript(graph))(x).numpy(), served["logits"])


def test_groups_are_frozen_at_their_own_bounds_and_exact() -> None:
    """Layers of 8, 6 and 4 bits in one graph; where a layer has fewer than what it reads, codes are brought to it."""
    groups = (LayerGroup("group1", "groups.1.*", 6), LayerGroup("group2", "groups.2.*.conv2", 4))
    graph = frozen(
        build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), (3, 32, 32), groups=groups
    )
    bits = {operation.source: operation.bits for operation in graph.weighted()}
    inputs = {operation.source: graph.tensors[operation.inputs[0]].bits for operation in graph.weighted()}
    for name in ("groups.1.0.conv1", "groups.1.0.shortcut.0", "groups.1.2.conv2"):
        assert (bits[name], inputs[name]) == (6, 6)
    assert (bits["groups.2.1.conv2"], inputs["groups.2.1.conv2"]) == (4, 4)
    assert (bits["groups.2.1.conv1"], inputs["groups.2.1.conv1"], bits["fc"], bits["conv1"]) == (8, 8, 8, 8)
    assert_exact(graph, torch.randn(4, 3, 32, 32))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), 32),
    "cifar mobilenetv2": (lambda: build_model("mobilenetv2", num_classes=10, in_channels=3, input_size=(32, 32)), 32),
    "resnet18": (lambda: get_model("resnet18", weights=None), 64),
    "mobilenet_v2": (lambda: get_model("mobilenet_v2", weights=None), 64),
    "mobilenet_v3_small": (lambda: get_model("mobilenet_v3_small", weights=None), 64),
    "efficientnet_b0": (lambda: get_model("efficientnet_b0", weights=None), 64),
    "regnet_y_400mf": (lambda: get_model("regnet_y_400mf", weights=None), 64),
    "densenet121": (lambda: get_model("densenet121", weights=None), 64),
    "squeezenet1_1": (lambda: get_model("squeezenet1_1", weights=None), 64),
    "shufflenet_v2_x0_5": (lambda: get_model("shufflenet_v2_x0_5", weights=None), 64),
}


@pytest.fixture(scope="module")
def resnet20() -> IntegerGraph:
    return frozen(MODELS["resnet20"][0](), (3, 32, 32))


@pytest.mark.by_default("cifar mobilenetv2", "squeezenet1_1", "shufflenet*")
@pytest.mark.parametrize("name", MODELS)
def test_networks_agree_in_every_integer_and_leave_no_float_operator(name: str) -> None:
    build, size = MODELS[name]
    graph = frozen(build(), (3, size, size))
    assert_exact(graph, torch.randn(4, 3, size, size))
    assert float_operators(write_onnx(graph)) == {}


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_size_and_threads_do_not_matter(resnet20: IntegerGraph, batch: int, threads: int) -> None:
    assert_exact(resnet20, torch.randn(batch, 3, 32, 32), threads)


@pytest.mark.by_default("8-2", "6-None", "4-3")
@pytest.mark.parametrize(("max_bits", "weight_bits"), [(8, 2), (8, 4), (6, None), (4, 3), (3, None), (2, None)])
def test_fewer_bits_agree_too_and_still_fuse(max_bits: int, weight_bits: int | None) -> None:
    graph = frozen(MODELS["resnet20"][0](), (3, 32, 32), max_bits=max_bits, weight_bits=weight_bits)
    assert_exact(graph, 3 * torch.randn(8, 3, 32, 32))
    operators = optimized_operators(write_onnx(graph))
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (21, 9, 1)


@pytest.mark.by_default("2-resnet20", "5-shufflenet*")
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("activation_bits", [2, 5])
def test_networks_with_fewer_bits_of_activations_agree_and_leave_no_float_operator(
    name: str, activation_bits: int
) -> None:
    build, size = MODELS[name]
    graph = frozen(build(), (3, size, size), weight_bits=4, activation_bits=activation_bits)
    assert {tensor.bits for tensor in graph.tensors.values()} == {activation_bits, 8}
    assert_exact(graph, 2 * torch.randn(3, 3, size, size))
    assert float_operators(write_onnx(graph)) == {}


def test_layers_with_bits_of_their_own_agree() -> None:
    torch.manual_seed(0)
    graph = frozen(MODELS["resnet20"][0](), (3, 32, 32), weight_bits={"groups.0.0.conv1": 3, "groups.1.0.conv2": 5})
    bits = {operation.source: operation.bits for operation in graph.weighted()}
    assert (bits.pop("groups.0.0.conv1"), bits.pop("groups.1.0.conv2")) == (3, 5)
    assert set(bits.values()) == {8}
    assert_exact(graph, torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize("opset", [13, 17, 20, 21, 25])
def test_every_opset_gives_the_same_logits_and_the_same_kernels(resnet20: IntegerGraph, opset: int) -> None:
    x = torch.randn(4, 3, 32, 32)
    model = write_onnx(resnet20, opset=opset)
    assert np.array_equal(run_onnxruntime(model, x, ["logits"])["logits"], IntegerExecutor(resnet20)(x).numpy())
    assert optimized_operators(model) == optimized_operators(write_onnx(resnet20))


def test_the_reference_evaluator_of_onnx_differs_by_rounding_only(resnet20: IntegerGraph) -> None:
    """It executes the file's float operators between quantizers: the same function, rounded elsewhere."""
    graph = resnet20
    x = torch.randn(2, 3, 32, 32)
    reference = ReferenceEvaluator(onnx.load_model_from_string(write_onnx(graph, opset=20))).run(
        ["logits"], {"image": x.numpy()}
    )[0]
    step = graph.tensors[graph.outputs[0]].scale
    codes = np.abs(reference - IntegerExecutor(graph)(x).numpy()) / step
    assert codes.max() <= 2.01
    assert (codes > 0.5).mean() < 0.4


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 4, "depthwise"]))
    channels = draw(st.integers(1, 3)) * (1 if groups in (1, "depthwise") else int(groups))
    count = channels if groups == "depthwise" else int(groups)
    out = count * draw(st.integers(1, 9))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = draw(st.sampled_from([1, 1, 2]))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    size = (draw(st.integers(10, 17)), draw(st.integers(10, 17)))
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, count, bias=draw(st.booleans()))
    parts: list[nn.Module] = [conv]
    if draw(st.booleans()):
        parts.append(nn.BatchNorm2d(out))
    parts += draw(st.sampled_from([[], [nn.ReLU()], [nn.ReLU6()], [nn.LeakyReLU(0.2)], [nn.Hardswish()], [nn.SiLU()]]))
    parts += draw(st.sampled_from([[], [nn.MaxPool2d(2, 1, 1)], [nn.AvgPool2d(2)], [nn.AvgPool2d(3, 2, 1)]]))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, draw(st.integers(2, 20)))]
    return nn.Sequential(*parts, *head), (channels, *size)


@given(convolutions(), st.integers(2, 8), st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=60)
def test_any_convolution_agrees(case: tuple[nn.Module, tuple[int, ...]], max_bits: int, seed: int, batch: int) -> None:
    network, shape = case
    graph = frozen(network, shape, max_bits=max_bits, seed=seed)
    assert_exact(graph, 2 * torch.randn(batch, *shape))


class _Residual(nn.Module):
    """Activations that stay at max_bits feed scheduled layers: at once, through a maximum, and from a table."""

    def __init__(self, channels: int, activation: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.activation = activation
        self.pool: nn.Module = nn.MaxPool2d(2, 1, 1) if pooled else nn.Identity()
        self.side, self.head = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, 4, 1)  # the last holds

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        x = x + self.second(self.activation(self.first(x)))
        return self.head(self.side(self.pool(x))).mean((2, 3))


@given(
    st.integers(1, 20), st.sampled_from([nn.ReLU(), nn.Tanh(), nn.Hardswish()]), st.booleans(),
    st.tuples(st.integers(2, 8), st.integers(2, 8)).map(sorted), st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60)
def test_held_edges_brought_to_fewer_bits_agree(
    channels: int, activation: nn.Module, pooled: bool, bits: list[int], seed: int
) -> None:
    network = _Residual(channels, activation, pooled=pooled)
    graph = frozen(network, (3, 7, 7), max_bits=bits[1], activation_bits=bits[0], seed=seed)
    tables = [name for name in graph.tensors if name.endswith("_input")]
    assert bool(tables) == (bits[0] < bits[1])
    assert_exact(graph, 2 * torch.randn(3, 3, 7, 7))


class _Binary(nn.Module):
    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, channels, 1), nn.Conv2d(3, channels, 3, padding=1)
        self.head = nn.Conv2d(2 * channels if kind == "cat" else channels, 4, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        if self.kind == "add":
            y = functional.relu(a + b)
        elif self.kind == "mul":
            y = a * functional.adaptive_avg_pool2d(b, 1).sigmoid()
        elif self.kind == "square":
            y = a * a
        else:
            y = torch.cat([a, b], dim=1)
        return self.head(y).mean((2, 3))


@given(
    st.sampled_from(["add", "mul", "square", "cat"]), st.integers(1, 40), st.integers(2, 8), st.integers(0, 1000),
    st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=60)
def test_sums_products_and_concatenations_agree(kind: str, channels: int, max_bits: int, seed: int, size: int) -> None:
    graph = frozen(_Binary(channels, kind), (3, size, size), max_bits=max_bits, seed=seed)
    assert_exact(graph, 2 * torch.randn(3, 3, size, size))


def test_one_dimensional_convolutions_agree() -> None:
    network = nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(8 * 8, 4),
    )  # fmt: skip
    assert_exact(frozen(network, (2, 32)), torch.randn(5, 2, 32))


def test_fully_connected_networks_with_batchnorm_agree() -> None:
    network = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 5))
    assert_exact(frozen(network, (20,)), torch.randn(9, 20))
