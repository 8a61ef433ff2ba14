"""Steps as on a GPU, on tensors of the device "meta", which have no values.

What would wait for a GPU (`item`, `float`, a branch on a value) or mix devices is an error there.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.modules import activation_quantizer
from cpt_deploy.quantization.numerics.recording import is_recorded
from cpt_deploy.quantization.training_step import gpu_products, int8_products
from cpt_deploy.quantization.training_step.execution_path import ExecutionPath
from cpt_deploy.quantization.training_step.fused_operations import Engine

triton_backend = pytest.importorskip("cpt_deploy.quantization.kernels.triton.backend")


class Network(nn.Module):
    """Strided, grouped, pointwise and parametrized convolutions, BatchNorm, ReLU6, a sum, a pool, a mean, Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.down = nn.Sequential(weight_norm(nn.Conv2d(16, 16, 1, 2, bias=False)), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.stem(x), 2)
        return self.head(functional.relu(self.point(self.narrow(x)) + self.down(x)))


class Counted(TorchDispatchMode):
    """Counts operations that would be launches."""

    FREE = ("view", "expand", "as_strided", "detach", "permute", "select", "unbind", "alias", "transpose", "t")
    FREE += ("empty", "new_empty")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(self.FREE) and name != "_unsafe_view":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets Triton's kernels be used; the value is the names of those that would be launched."""
    names: list[str] = []
    monkeypatch.setattr(triton_backend, "launch", lambda kernel, *_, **__: names.append(kernel.__name__))
    monkeypatch.setattr(int8_products, "has_int8_tensor_cores", lambda _: True)
    use(triton_backend.TritonKernels(), monkeypatch)
    return names


def use(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, path = Engine(kernels, torch.bfloat16, replayable=True), ExecutionPath("bf16", "as on a GPU")
    monkeypatch.setattr(QuantizedModel, "execution_path", lambda *_: path)
    monkeypatch.setattr(QuantizedModel, "_engine", lambda *_: engine)


def model_on_gpu() -> QuantizedModel:
    model = prepare(Network(), torch.zeros(2, 3, 16, 16), QuantizationConfig()).train().to("meta")
    return model.to(memory_format=torch.channels_last)


def batch() -> tuple[Tensor, Tensor]:
    return torch.empty(8, 3, 16, 16, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")


def step(model: QuantizedModel, number: int = 0) -> Tensor:
    model.set_bits(3 + number % 6, 8)
    model.set_step(number)
    x, labels = batch()
    loss = functional.cross_entropy(model(x), labels)
    loss.backward()
    return loss


def test_such_a_tensor_has_no_value_to_read() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.ones((), device="meta"))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_no_step_waits_for_the_device(launches, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if backend == "torch":
        use(TorchKernels(), monkeypatch)
        monkeypatch.setattr(int8_products, "has_int8_tensor_cores", lambda _: False)
    model = model_on_gpu()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number in range(3):
        step(model, number)
        optimizer.step()
        optimizer.zero_grad()
    assert bool(launches) == (backend == "triton")


def test_steps_launch_the_same_at_all_bits(launches: list[str]) -> None:
    """So one CUDA-graph step serves all bits: max quantized values and seeds are read from tensors that stay."""
    model = model_on_gpu()
    state = (
        model.precision.seeds,
        model.precision.gradient_quant_max,
        model.precision.activation_quant_max("scheduled"),
    )
    recorded = []
    for number in (0, 5, 2):  # 3, 8 and 5 bits
        model.set_bits(3 + number, 8)
        model.set_step(number)
        launches.clear()
        x, labels = batch()
        with Counted() as operations:
            functional.cross_entropy(model(x), labels).backward()
        recorded.append((list(launches), operations.names))
    assert recorded[0][0] == recorded[1][0] == recorded[2][0]
    assert recorded[1][1] == recorded[2][1]
    after = (
        model.precision.seeds,
        model.precision.gradient_quant_max,
        model.precision.activation_quant_max("scheduled"),
    )
    assert all(a is b for a, b in zip(state, after, strict=True))


def test_a_layer_is_a_few_launches(launches: list[str]) -> None:
    def launched(depth: int) -> int:
        layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
        model = prepare(network, torch.zeros(2, 3, 16, 16), QuantizationConfig()).train().to("meta")
        model = model.to(memory_format=torch.channels_last)
        step(model)
        model.zero_grad()
        launches.clear()
        x, labels = batch()
        with Counted() as operations:
            functional.cross_entropy(model(x), labels).backward()
        return len(launches) + len(operations.names)

    assert launched(3) - launched(2) <= 20  # products and the cast of the weight among them


def test_gradients_accumulate_over_steps(launches: list[str]) -> None:
    model = model_on_gpu()
    step(model)
    before = {name: p.grad for name, p in model.named_parameters()}
    step(model, 1)
    assert all(p.grad is before[name] for name, p in model.named_parameters())


def test_sums_are_exact_under_autocast_too() -> None:
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # as torch.autocast does, which asks for a GPU
    try:
        with FakeTensorMode():
            codes = torch.empty(2, 8, 6, 6, dtype=torch.uint8, device="cuda", memory_format=torch.channels_last)
            for size in (1, 3):
                layer, zero_point = nn.Conv2d(8, 4, size), torch.empty((), device="cuda")
                weight = torch.empty(4, 8, size, size, dtype=torch.int8, device="cuda")
                sums = gpu_products.forward(layer, codes, zero_point, weight, TorchKernels())
                assert sums.dtype == torch.float32
                assert sums.shape == (2, 4, 7 - size, 7 - size)
                assert sums.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", before)


def test_a_model_can_be_recomputed_in_backward(launches: list[str]) -> None:
    model = model_on_gpu()
    x, labels = batch()
    functional.cross_entropy(checkpoint(model, x, use_reentrant=False, preserve_rng_state=False), labels).backward()
    assert launches.count("affine_quantize_kernel") == 2 * 6
    assert all(p.grad is not None for p in model.parameters())


def test_a_recording_at_8_bits_serves_fewer_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Module by module, where a step at max_bits leaves out operations unless it is recorded."""
    monkeypatch.setattr(QuantizedModel, "execution_path", lambda *_: ExecutionPath("modules", "not fused"))
    network = build_model("resnet8", num_classes=5, in_channels=3, input_size=(16, 16), width=8)
    model = prepare(network, torch.zeros(2, 3, 16, 16), QuantizationConfig()).train().to("meta")

    def operations(bits: int):
        model.set_bits(bits, 8)
        with Counted() as counted:
            model(batch()[0])
        return counted.names

    assert len(operations(8)) < len(operations(5))
    monkeypatch.setattr(activation_quantizer, "is_recorded", lambda _: True)
    assert operations(8) == operations(5) == operations(3)


def test_images_of_one_channel_are_convolved_in_int8_and_depthwise_layers_are_not(launches: list[str]) -> None:
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = prepare(network, torch.zeros(2, 1, 16, 16), QuantizationConfig()).train().to("meta")
    model(torch.empty(8, 1, 16, 16, device="meta"))
    assert launches.count("convolution_kernel") == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_step_knows_that_it_is_recorded() -> None:
    x = torch.zeros(1, device="cuda")
    assert not is_recorded(x.device)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.add_(1)
        assert is_recorded(x.device)
    assert not is_recorded(x.device)
