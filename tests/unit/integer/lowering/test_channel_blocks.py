"""Channels of zeros around depthwise convolutions change no result, and are not added where something reads them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer import freeze
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.lowering import freeze as lowering
from cpt_deploy.integer.operations import Convolution
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare
from cpt_deploy.validation.integers.compare_integers import compare_integers


class Block(nn.Module):
    """An inverted residual with squeeze and excitation between its depthwise convolution and the last one."""

    def __init__(self, channels: int, kernel: int, *, residual: bool, excited: bool) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(6, channels, 1), nn.BatchNorm2d(channels), nn.Hardswish())
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Hardsigmoid()
        )
        self.project = nn.Conv2d(channels, 7, 1)
        self.residual, self.excited = residual, excited

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        y = self.depthwise(x)
        y = torch.relu(x + y) if self.residual else torch.relu(y)
        y = y * self.excite(y) if self.excited else y
        result: Tensor = self.project(y)
        return result


def graphs(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[IntegerGraph, IntegerGraph]:
    """Return a network's graph with the channels that it has, and with whole blocks."""
    torch.manual_seed(0)
    shape = (2, 6, 9, 9)
    model = prepare(network.eval(), torch.randn(shape), QuantizationConfig())
    calibrate(model, [torch.randn(shape) for _ in range(2)])
    blocks = freeze(model.eval())
    with monkeypatch.context() as patch:
        patch.setattr(lowering, "in_channel_blocks", lambda graph: graph)
        return freeze(model), blocks


def check_same(plain: IntegerGraph, blocks: IntegerGraph) -> None:
    """Compare results in onnxruntime, and each integer of the one with blocks."""
    x = {plain.signature.inputs[0].name: np.random.default_rng(0).normal(size=(3, 6, 9, 9)).astype(np.float32)}
    first, second = (open_session(write_onnx(graph)).run(None, x)[0] for graph in (plain, blocks))
    np.testing.assert_array_equal(first, second)
    assert not compare_integers(blocks, write_onnx(blocks), x).mismatches


@given(st.integers(8, 50), st.sampled_from([3, 5]), st.booleans(), st.booleans())
def test_the_results_are_the_same(channels: int, kernel: int, residual: bool, excited: bool) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        plain, blocks = graphs(Block(channels, kernel, residual=residual, excited=excited), monkeypatch)
    depthwise = [o.groups for o in blocks.operations if isinstance(o, Convolution) and o.codes.shape[-1] == kernel]
    assert depthwise == [-(-channels // 16) * 16]
    check_same(plain, blocks)


class Read(nn.Module):
    """A depthwise convolution whose channels are an output, or next to others, or grouped."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.last = nn.Conv2d(48 if reader == "concatenated" else 24, 8, 1, groups=2 if reader == "grouped" else 1)
        self.fully = nn.Linear(24 * 81, 3)
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(x)
        x = self.depthwise(wide)
        match self.reader:
            case "output":
                return x
            case "flattened":
                result: Tensor = self.fully(x.flatten(1))
            case "concatenated":
                result = self.last(torch.cat([x, wide], 1))
            case _:
                result = self.last(x)
        return result


@pytest.mark.parametrize("reader", ["output", "flattened", "concatenated", "grouped"])
def test_channels_that_others_read_stay(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, blocks = graphs(Read(reader), monkeypatch)
    assert {name: tensor.shape for name, tensor in blocks.tensors.items()} == {
        name: tensor.shape for name, tensor in plain.tensors.items()
    }
    check_same(plain, blocks)


def test_few_channels_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, blocks = graphs(Block(5, 3, residual=False, excited=False), monkeypatch)
    assert plain.tensors == blocks.tensors
