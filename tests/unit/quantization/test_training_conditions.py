"""Training steps under what PyTorch has for training: autocast, checkpointing, accumulation, CUDA graphs, DDP.

On the CPU where it can, and with the marker `gpu` on a GPU.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare

on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["auto", "modules"])
def model(request: pytest.FixtureRequest, device: torch.device) -> QuantizedModel:
    """A small ResNet on the device, on the fastest path and module by module."""
    return small_model(request.param, device)


def small_model(compute: str, device: torch.device) -> QuantizedModel:
    torch.manual_seed(0)
    network = build_model("tiny", num_classes=10, in_channels=3, input_size=(16, 16))
    model = prepare(network, torch.zeros(2, 3, 16, 16), QuantizationConfig()).train()
    model.compute = compute  # type: ignore[assignment]
    model.set_bits(5, 8)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def batch(device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, 16, 16, generator=numbers)
    return x.to(device, memory_format=torch.channels_last), torch.arange(16, device=device) % 10


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(data[0]).float(), data[1])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_step(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a step of a copy."""
    copied = copy.deepcopy(model)
    loss_of(copied, data).backward()
    return gradients(copied)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], similarity: float) -> None:
    """Compare directions of all weights' gradients together: single roundings may go either way."""
    assert found.keys() == expected.keys()
    flat = [torch.cat([values[name].flatten().float() for name in expected]) for values in (found, expected)]
    assert all(values.isfinite().all() for values in flat)
    assert functional.cosine_similarity(*flat, dim=0) > similarity


def test_gradients_of_several_batches_add_up(model: QuantizedModel, device: torch.device) -> None:
    parts = [batch(device, seed) for seed in range(3)]
    single = [one_step(model, part) for part in parts]
    together = copy.deepcopy(model)
    for part in parts:
        loss_of(together, part).backward()
    for name, gradient in gradients(together).items():
        # Only the parameters are shared: each batch has its own ranges and statistics, and ranges are not the averages.
        assert torch.allclose(gradient, single[0][name] + single[1][name] + single[2][name], rtol=1e-4, atol=1e-6), name


def test_checkpointing_computes_the_same_gradients(model: QuantizedModel, device: torch.device) -> None:
    x, labels = batch(device)
    expected = one_step(model, (x, labels))
    logits = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    functional.cross_entropy(logits.float(), labels).backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name]) or device.type == "cuda", name
    assert_near(gradients(model), expected, 0.999)


def test_under_autocast_gradients_point_the_same_way(model: QuantizedModel, device: torch.device) -> None:
    data = batch(device)
    expected = one_step(model, data)
    with torch.autocast(device.type, torch.bfloat16):
        loss = loss_of(model, data)
    loss.backward()
    found = gradients(model)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert_near(found, expected, 0.9)


def test_memory_order_does_not_matter(model: QuantizedModel, device: torch.device) -> None:
    x, labels = batch(device)
    expected = one_step(model, (x, labels))
    rows = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    loss_of(rows, (x.contiguous(), labels)).backward()
    # The noise of a gradient goes by the place in memory, so it is another one.
    assert_near(gradients(rows), expected, 0.9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_cuda_graph_serves_all_bits_and_steps() -> None:
    device = torch.device("cuda")
    model, (x, labels) = small_model("auto", device), batch(torch.device("cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad()
            loss_of(model, (x, labels)).backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = loss_of(model, (x, labels))
        loss.backward()
    for step, bits in enumerate((3, 8, 5)):
        model.set_bits(bits, 8)
        model.set_step(step)
        x.copy_(batch(device, seed=step)[0])
        eager = copy.deepcopy(model)
        eager.zero_grad()
        expected = one_step(eager, (x, labels))
        model.zero_grad(set_to_none=False)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.allclose(loss.detach(), loss_of(eager, (x, labels)).detach(), atol=1e-2)
        assert_near(gradients(model), expected, 0.99)


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compute", ["auto", "modules"])
def test_data_parallel_on_nccl(nccl: None, compute: str) -> None:
    device = torch.device("cuda")
    model, data = small_model(compute, device), batch(device)
    expected = one_step(model, data)
    replica = DistributedDataParallel(model, device_ids=[0])
    loss_of(replica, data).backward()
    assert_near(gradients(model), expected, 0.99)
