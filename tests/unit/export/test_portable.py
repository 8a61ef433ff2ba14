"""Portable models: no input saturates a simulated `vpmaddubsw`, and onnxruntime agrees in every integer."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torchvision.models import get_model

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_native, prepare
from cpt_deploy.validation import layer_saturation, optimized_operators, with_intermediate_outputs

Integers = NDArray[np.int64]


def trained(network: nn.Module, shape: tuple[int, ...], *, max_bits: int = 8, seed: int = 0) -> QuantizedModel:
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data *= torch.where(torch.rand_like(module.weight) < 0.1, -1.0, 1.0)
        if isinstance(module, nn.Conv2d | nn.Linear):  # heavy tails, so that some channels keep their range
            module.weight.data = module.weight.data**3
    return prepare(network, torch.zeros(2, *shape), QuantizationConfig(min_bits=min(3, max_bits), max_bits=max_bits))


def frozen(model: QuantizedModel, *, weight_bits: int | None = None, portable: bool = True) -> IntegerGraph:
    if not portable:
        make_native(model)
    torch.manual_seed(1)
    calibrate(model, [torch.randn(4, *model.signature.inputs[0].shape) for _ in range(2)], weight_bits=weight_bits)
    return freeze(model, weight_bits=weight_bits)


def accumulate_in_16_bits(codes: Integers, x: Integers) -> Integers:
    """What vpmaddubsw and vpmaddwd make of codes (O, K) and activations (K,): pairs in int16, sums in int32."""
    products = codes * x
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1)))
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


def hard_inputs(codes: Integers, most: int, rng: np.random.Generator) -> Iterator[tuple[Integers, Integers]]:
    """Yield codes in some packing order with activations: random ones, and for each channel the worst."""
    for _ in range(4):
        order = rng.permutation(codes.shape[1])
        yield codes[:, order], rng.choice([0, most, rng.integers(most + 1)], codes.shape[1])
    for row in codes:
        order = np.argsort(row, kind="stable")
        for reach in (order, order[::-1]):  # the largest codes of a sign side by side
            signs = codes[:, reach]
            yield signs, np.where(row[reach] > 0, most, 0)
            yield signs, np.where(row[reach] < 0, most, 0)


def saturates(graph: IntegerGraph) -> bool:
    rng = np.random.default_rng(0)
    for operation in graph.weighted():
        codes = operation.executed_codes.reshape(len(operation.codes), -1).astype(np.int64)
        for packed, x in hard_inputs(codes, graph.tensors[operation.inputs[0]].quant_max, rng):
            if not np.array_equal(accumulate_in_16_bits(packed, x), packed @ x):
                return True
    return False


def cannot_saturate(graph: IntegerGraph) -> bool:
    layers = [(op, graph.tensors[op.inputs[0]].bits) for op in graph.weighted()]
    return not any(layer_saturation(op.output, op.executed_codes, bits).possible for op, bits in layers)


def assert_exact(graph: IntegerGraph, x: torch.Tensor) -> None:
    observable = with_intermediate_outputs(write_onnx(graph))
    served = OnnxRuntimeModel(observable.model).trace({"image": x.numpy()})
    codes = IntegerExecutor(graph).trace(x)
    assert {intermediate.name for intermediate in observable.intermediates} == set(codes)
    assert not {name: 1 for name in codes if not np.array_equal(codes[name].numpy(), served[name])}


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    width = 4 * draw(st.integers(1, 4))
    return nn.Sequential(
        nn.Conv2d(4, width, draw(st.integers(1, 3)), groups=groups, bias=draw(st.booleans())),
        nn.BatchNorm2d(width), draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Identity()])),
        nn.Conv2d(width, width, 3, groups=draw(st.sampled_from([1, width]))), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, draw(st.integers(2, 6))),
    )  # fmt: skip


@given(networks(), st.integers(2, 8), st.integers(2, 8), st.integers(0, 1000))
@settings(max_examples=40)
def test_no_portable_model_saturates_whatever_its_input(
    network: nn.Module, max_bits: int, bits: int, seed: int
) -> None:
    graph = frozen(trained(network, (4, 8, 8), max_bits=max_bits, seed=seed), weight_bits=bits)
    assert cannot_saturate(graph)
    assert not saturates(graph)
    assert_exact(graph, 2 * torch.randn(3, 4, 8, 8))


def test_the_simulation_saturates_where_the_model_is_not_portable() -> None:
    model = trained(MODELS["resnet20"][0](), (3, 32, 32))
    assert not saturates(frozen(model))
    plain = frozen(model, portable=False)
    assert saturates(plain)
    assert not cannot_saturate(plain)


ONEDNN = """
import sys, numpy as np, torch
codes, x = (torch.from_numpy(array) for array in np.load(sys.argv[1]).values())
count = len(codes)
packed = torch.ops.onednn.qlinear_prepack(codes, list(x.shape))
ones, zeros = torch.ones(count), torch.zeros(count, dtype=torch.int64)
sums = torch.ops.onednn.qlinear_pointwise(
    x, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
)
np.save(sys.argv[2], sums.numpy())
"""


def accumulate_on_avx2(codes: Integers, x: Integers, folder: Path) -> Integers:
    """The sums of codes (O, K) and activations (N, K) in oneDNN's kernels, which use vpmaddubsw when told to."""
    np.savez(folder / "in.npz", codes=codes.astype(np.int8), x=x.astype(np.uint8))
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run(
        [sys.executable, "-c", ONEDNN, str(folder / "in.npz"), str(folder / "out.npy")], check=True, env=environment
    )
    return np.load(folder / "out.npy").astype(np.int64)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="needs x86 and oneDNN"
)
def test_the_real_instruction_saturates_only_where_the_model_is_not_portable(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10))
    model = trained(network, (3, 4, 4))
    for portable in (True, False):
        operation = frozen(model, portable=portable).weighted()[0]
        codes = operation.executed_codes.astype(np.int64)
        worst = [np.where(sign * row > 0, 255, 0) for row in codes for sign in (1, -1)]
        x = np.stack([*worst, *np.random.default_rng(0).integers(0, 256, (40, 48))])
        assert np.array_equal(accumulate_on_avx2(codes, x, tmp_path), x @ codes.T) is portable


@pytest.mark.parametrize("bits", [4, 7])
def test_fewer_bits_keep_their_codes_and_lose_a_shift_where_they_must(bits: int) -> None:
    model = trained(MODELS["resnet20"][0](), (3, 32, 32))
    portable = frozen(model, weight_bits=bits)
    plain = frozen(model, weight_bits=bits, portable=False)
    assert cannot_saturate(portable)
    assert not saturates(portable)
    inner = [(a, b) for a, b in zip(plain.weighted(), portable.weighted(), strict=True) if a.bits == bits]
    assert all(np.array_equal(a.codes, b.codes) for a, b in inner)
    assert {a.shift - b.shift for a, b in inner} <= {0, 1}
    assert_exact(portable, torch.randn(4, 3, 32, 32))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), 32),
    "resnet18": (lambda: get_model("resnet18", weights=None), 64),
    "mobilenet_v2": (lambda: get_model("mobilenet_v2", weights=None), 64),
    "efficientnet_b0": (lambda: get_model("efficientnet_b0", weights=None), 64),
    "densenet121": (lambda: get_model("densenet121", weights=None), 64),
}


@pytest.mark.parametrize("name", MODELS)
def test_portable_networks_agree_in_every_integer_and_run_on_the_same_kernels(name: str) -> None:
    build, size = MODELS[name]
    model = trained(build(), (3, size, size))
    graph = frozen(model)
    plain = optimized_operators(write_onnx(frozen(model, portable=False)))
    assert cannot_saturate(graph)
    assert_exact(graph, torch.randn(4, 3, size, size))
    assert optimized_operators(write_onnx(graph)) == plain
