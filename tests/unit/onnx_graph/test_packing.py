"""Packed weight codes: half or a quarter of the bytes, the same kernels, the same integers."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torchvision.models import get_model

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.export import smallest_opset, write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.models import build_model
from cpt_deploy.onnx_graph.packing import packed_tensor
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare
from cpt_deploy.validation import float_operators, optimized_operators, with_intermediate_outputs


def frozen(
    network: nn.Module, *, weight_bits: int, max_bits: int = 8, size: int = 32, channels: int = 3, ends: str = "fixed"
) -> IntegerGraph:
    torch.manual_seed(0)
    config = QuantizationConfig(min_bits=2, max_bits=max_bits, ends=ends)
    model = prepare(network, torch.zeros(2, channels, size, size), config)
    calibrate(model, [torch.randn(4, channels, size, size)], weight_bits=weight_bits)
    return freeze(model, weight_bits=weight_bits)


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32))


@pytest.fixture(scope="module")
def at_bits() -> Callable[[int], IntegerGraph]:
    graphs: dict[int, IntegerGraph] = {}

    def graph(bits: int) -> IntegerGraph:
        if bits not in graphs:
            graphs[bits] = frozen(resnet20(), weight_bits=bits)
        return graphs[bits]

    return graph


def weight_types(model: bytes) -> set[str]:
    initializers = onnx.load_model_from_string(model).graph.initializer
    return {TensorProto.DataType.Name(i.data_type) for i in initializers if i.name.endswith(".weight_codes")}


@pytest.mark.parametrize(
    ("bits", "opset", "types"),
    [
        (8, 17, {"INT8"}),
        (5, 17, {"INT8"}),
        (4, 21, {"INT4", "INT8"}),
        (3, 21, {"INT4", "INT8"}),
        (2, 25, {"INT2", "INT8"}),
    ],
)
def test_codes_take_the_smallest_type_that_holds_them(at_bits, bits, opset, types) -> None:
    graph = at_bits(bits)
    model = write_onnx(graph)
    assert smallest_opset(graph) == opset == onnx.load_model_from_string(model).opset_import[0].version
    assert weight_types(model) == types
    assert weight_types(write_onnx(graph, opset=20)) == {"INT8"}


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (4, 23), (4, 25), (3, 21), (2, 21), (2, 25)])
def test_packed_files_run_on_the_same_kernels_and_give_the_same_logits(at_bits, bits, opset) -> None:
    graph = at_bits(bits)
    packed, plain = write_onnx(graph, opset=opset), write_onnx(graph, opset=20)
    assert len(packed) < (0.6 if opset == 21 or bits > 2 else 0.36) * len(plain)
    assert optimized_operators(packed) == optimized_operators(plain)
    assert float_operators(packed) == {}
    x = torch.randn(8, 3, 32, 32)
    expected = IntegerExecutor(graph)(x).numpy()
    assert np.array_equal(OnnxRuntimeModel(packed).run({"image": x.numpy()})["logits"], expected)
    # without optimizations nothing is folded: the cast runs with the rest
    unoptimized = [
        OnnxRuntimeModel(model, optimize=False).run({"image": x.numpy()})["logits"] for model in (packed, plain)
    ]
    assert np.array_equal(*unoptimized)


def test_all_integers_of_a_packed_file_can_be_looked_at(at_bits) -> None:
    graph = at_bits(4)
    observable = with_intermediate_outputs(write_onnx(graph))
    assert [intermediate.name for intermediate in observable.intermediates] == list(graph.tensors)
    assert observable.hidden == ()


def test_a_dequantizer_that_reads_int4_itself_stays_in_float(at_bits) -> None:
    """Why the codes are cast: the operators that a fused graph would not have."""
    proto = onnx.load_model_from_string(write_onnx(at_bits(4)))
    made_by = {node.output[0]: node for node in proto.graph.node}
    zeros = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0].endswith(".weight"):
            source = made_by.get(node.input[0])
            while source is not None:
                node.input[0] = source.input[0]
                source = made_by.get(source.input[0])
            if node.input[0] in {i.name for i in proto.graph.initializer if i.data_type == TensorProto.INT4}:
                channels = next(i.dims[0] for i in proto.graph.initializer if i.name == node.input[1])
                name = node.input[2] = f"int4_zeros_{channels}"
                int4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
                zeros[name] = numpy_helper.from_array(np.zeros(channels, np.int8).astype(int4), name)
    proto.graph.initializer.extend(zeros.values())
    assert float_operators(proto.SerializeToString())["Conv"] == 20


@pytest.mark.parametrize(
    ("size", "stride", "rearranged"), [(16, 2, "SpaceToDepth"), (16, 1, "Pad")], ids=["blocks", "padded"]
)
def test_a_rewritten_first_convolution_is_packed_too(size, stride, rearranged) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip
    graph = frozen(network, weight_bits=4, size=size, ends="scheduled")
    model = write_onnx(graph)
    assert weight_types(model) == {"INT4"}
    assert rearranged in optimized_operators(model)
    x = torch.randn(4, 3, size, size)
    assert np.array_equal(
        OnnxRuntimeModel(model).run({"image": x.numpy()})["logits"], IntegerExecutor(graph)(x).numpy()
    )


def test_resnet18_with_4_bits_is_at_most_0_14_of_float32() -> None:
    network = get_model("resnet18", weights=None)
    float32 = 4 * sum(parameter.numel() for parameter in network.parameters())
    graph = frozen(network, weight_bits=4, size=64)
    model = write_onnx(graph)
    assert len(model) <= 0.14 * float32
    assert float_operators(model) == {}
    x = torch.randn(2, 3, 64, 64)
    assert np.array_equal(
        OnnxRuntimeModel(model).run({"image": x.numpy()})["logits"], IntegerExecutor(graph)(x).numpy()
    )


def test_onnx_itself_reads_the_packed_file(at_bits) -> None:
    graph = at_bits(4)
    x = torch.randn(2, 3, 32, 32).numpy()
    logits = [
        ReferenceEvaluator(onnx.load_model_from_string(write_onnx(graph, opset=opset))).run(["logits"], {"image": x})[0]
        for opset in (20, 21)
    ]
    assert np.array_equal(*logits)


@given(st.integers(2, 4), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=60)
def test_unpacking_gives_back_any_codes(bits: int, shape: list[int], seed: int) -> None:
    most = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.int8)
    for opset, width in ((21, 4), (25, 2 if bits == 2 else 4)):
        tensor = packed_tensor("codes", codes, bits, opset)
        assert tensor is not None
        assert len(tensor.raw_data) == math.ceil(codes.size * width / 8)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)
    assert packed_tensor("codes", codes, bits, 20) is None


def test_layers_of_different_bits_are_each_packed_as_far_as_they_can_be(at_bits) -> None:
    graph = at_bits(4)
    layers = [replace(o, bits=8) if i % 2 else o for i, o in enumerate(graph.operations) if hasattr(o, "bits")]
    mixed = replace(
        graph, operations=tuple(next((m for m in layers if m.output == o.output), o) for o in graph.operations)
    )
    assert write_onnx(mixed, opset=20) == write_onnx(graph, opset=20)
    assert len(write_onnx(graph)) < len(write_onnx(mixed)) < len(write_onnx(graph, opset=20))
