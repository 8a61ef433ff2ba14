"""`torch.compile` of a model: one graph, no breaks, and the same graph at all bits and steps."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Residual(nn.Module):
    """Scheduled layers that read a held activation, BatchNorm, a sum, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(functional.relu(self.inner(x) + x))


def model() -> QuantizedModel:
    torch.manual_seed(0)
    return prepare(Residual(), torch.zeros(2, 3, 8, 8), QuantizationConfig()).train()


def trained(network: QuantizedModel, call: object, steps: list[tuple[int, int]]) -> list[Tensor]:
    """Return losses and the first layer's gradients of steps at (forward, backward) bits."""
    results = []
    for number, (forward, backward) in enumerate(steps):
        network.set_bits(forward, backward)
        network.set_step(number)
        x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        loss = functional.cross_entropy(call(x), torch.arange(6) % 5)  # type: ignore[operator]
        network.zero_grad()
        loss.backward()
        results += [loss.detach(), network.get_submodule("network.stem.0").weight.grad]
    return results


def test_bits_and_steps_change_without_a_new_graph_or_a_break() -> None:
    steps = [(3, 8), (8, 8), (5, 6), (4, 8), (8, 4), (6, 8)]
    compiled, plain = model(), model()
    plain.compute = "modules"
    counter = CompileCounterWithBackend("aot_eager")
    found = trained(compiled, torch.compile(compiled, backend=counter, fullgraph=True), steps)
    assert counter.frame_count == 1
    expected = trained(plain, plain, steps)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    for (name, a), (_, b) in zip(compiled.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
