"""Signed activations around 0: the executor against onnxruntime's S8 kernels, code by code, and what the file holds."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import UsageError
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.integer.graph import from_dict, to_dict
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, calibrate, make_symmetric, prepare
from cpt_deploy.quantization.numerics.affine import fake_quantize, symmetric_parameters
from cpt_deploy.validation import quantized_tensors


def frozen(
    network: nn.Module, shape: tuple[int, ...], *, seed: int = 0, weight_bits: int | None = None
) -> IntegerGraph:
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig())
    make_symmetric(model)
    calibrate(model, [torch.randn(4, *shape) for _ in range(2)], weight_bits=weight_bits)
    return freeze(model, weight_bits=weight_bits)


def run_onnxruntime(model: bytes, x: Tensor, names: list[str]) -> dict[str, np.ndarray]:
    session = open_session(model, threads=1)
    return dict(zip(names, session.run(names, {"image": x.numpy()}), strict=True))


def assert_exact(graph: IntegerGraph, x: Tensor) -> None:
    names = list(graph.tensors)
    proto = onnx.load_model_from_string(write_onnx(graph))
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in names)
    served = run_onnxruntime(proto.SerializeToString(), x, [*names, "logits"])
    executor = IntegerExecutor(graph)
    codes = executor.trace(x)
    differing = {name: int((codes[name].numpy() != served[name]).sum()) for name in names}
    assert not {name: count for name, count in differing.items() if count}
    assert np.array_equal(executor(x).numpy(), served["logits"])
    assert np.array_equal(run_onnxruntime(write_onnx(graph), x, ["logits"])["logits"], served["logits"])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)),
    "mobilenet_v2": lambda: get_model("mobilenet_v2", weights=None),
    "mobilenet_v3_small": lambda: get_model("mobilenet_v3_small", weights=None),
    "squeezenet1_1": lambda: get_model("squeezenet1_1", weights=None),
    "shufflenet_v2_x0_5": lambda: get_model("shufflenet_v2_x0_5", weights=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_networks_agree_in_every_code(name: str) -> None:
    graph = frozen(MODELS[name](), (3, 32, 32))
    assert all(tensor.signed and tensor.zero_point == 0 for tensor in graph.tensors.values())
    assert_exact(graph, 2 * torch.randn(3, 3, 32, 32))
    operators = optimized_operators(write_onnx(graph))
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Mul", "Concat"} & set(operators)


def test_the_file_holds_what_tensorrt_asks_for() -> None:
    """Zero points of 0 in int8, no quantizer of a bias, no Clip and no rearrangement of codes."""
    graph = frozen(MODELS["resnet20"](), (3, 32, 32))
    model = onnx.load_model_from_string(write_onnx(graph))
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        if node.op_type in {"Conv", "Gemm"}:
            assert constants[node.input[2]].dtype == np.float32
    assert {node.op_type for node in model.graph.node} == {
        "QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "Add", "GlobalAveragePool", "Gemm", "Reshape",
    }  # fmt: skip
    relus = sum(node.op_type == "Relu" for node in model.graph.node)
    assert relus == 19
    assert [intermediate.name for intermediate in quantized_tensors(write_onnx(graph))] != []


def test_weights_of_few_bits_agree_too() -> None:
    graph = frozen(MODELS["resnet20"](), (3, 32, 32), weight_bits=4)
    assert_exact(graph, torch.randn(3, 3, 32, 32))


class _Binary(nn.Module):
    def __init__(self, channels: int, kind: str, activation: nn.Module) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, channels, 1), nn.Conv2d(3, channels, 3, padding=1)
        self.head = nn.Conv2d(2 * channels if kind == "cat" else channels, 4, 1)
        self.kind, self.activation = kind, activation

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.activation(self.left(x)), self.right(x)
        if self.kind == "add":
            y = functional.relu(a + b)
        elif self.kind == "mul":
            y = a * functional.adaptive_avg_pool2d(b, 1).sigmoid()
        elif self.kind == "cat":
            y = torch.cat([a, b], dim=1)
        else:
            y = functional.max_pool2d(functional.avg_pool2d(a, 2, ceil_mode=False), 2, 1, 1)
        return self.head(y).mean((2, 3))


@given(
    st.sampled_from(["add", "mul", "cat", "pool"]), st.integers(1, 40), st.integers(0, 1000), st.integers(4, 9),
    st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Hardswish(), nn.SiLU(), nn.LeakyReLU(0.2), nn.Tanh()]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_sums_products_concatenations_pools_and_tables_agree(
    kind: str, channels: int, seed: int, size: int, activation: nn.Module
) -> None:
    graph = frozen(_Binary(channels, kind, activation), (3, size, size), seed=seed)
    assert_exact(graph, 3 * torch.randn(3, 3, size, size))


@given(
    st.integers(1, 3), st.integers(1, 9), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 3),
    st.integers(0, 2), st.sampled_from([1, 2, 4]), st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_any_convolution_agrees(
    channels: int, out: int, kernel: tuple[int, int], stride: int, padding: int, groups: int, seed: int
) -> None:
    conv = nn.Conv2d(channels * groups, out * groups, kernel, stride, padding, groups=groups)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out * groups, 5)]
    network = nn.Sequential(conv, nn.BatchNorm2d(out * groups), nn.ReLU(), *head)
    graph = frozen(network, (channels * groups, 9, 10), seed=seed)
    assert_exact(graph, 3 * torch.randn(2, channels * groups, 9, 10))


# Ranges whose scale is a normal float32: dividing by a subnormal one is rounding of another kind.
_MAGNITUDES = st.just(0.0) | st.floats(1e-30, 50)


@given(_MAGNITUDES.map(float.__neg__), _MAGNITUDES, st.integers(0, 100))
def test_fake_quantization_is_that_of_quantizelinear_in_int8(low: float, high: float, seed: int) -> None:
    """Against NumPy's rint and the saturation of int8."""
    scale, zero_point = symmetric_parameters(torch.tensor(low), torch.tensor(high), torch.tensor(255.0))
    x = torch.from_numpy(np.random.default_rng(seed).normal(scale=30, size=200).astype(np.float32))
    got = fake_quantize(x, scale, zero_point, torch.tensor(255.0)).numpy()
    expected = np.clip(np.rint(x.numpy() / scale.numpy()), -128, 127).astype(np.float32) * scale.numpy()
    assert np.array_equal(got, expected)
    assert max(-low, high) <= float(scale) * 127.0001 or max(-low, high) == 0


def test_a_graph_is_stored_and_read_back_with_its_signs() -> None:
    graph = frozen(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 3)), (1, 8, 8))
    again = from_dict(*to_dict(graph))
    x = torch.randn(2, 1, 8, 8)
    assert again.tensors == graph.tensors
    assert torch.equal(IntegerExecutor(again)(x), IntegerExecutor(graph)(x))


def test_other_bits_than_8_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(UsageError, match="8 bits to make them symmetric, but got 6"):
        make_symmetric(prepare(network, torch.zeros(2, 1, 2, 2), QuantizationConfig(max_bits=6)))
    with pytest.raises(UsageError, match="but got 4"):
        make_symmetric(prepare(network, torch.zeros(2, 1, 2, 2), QuantizationConfig()), 4)
