"""Sums that int32 does not hold: layers that lose range for them, and graphs that are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import ConversionError
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.accumulators import check_accumulators, worst_sum
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import FullyConnected, GlobalAverage
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.precision.accumulators import INT32_MOST
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare
from tests.unit.integer.graphs import graph_between

INPUTS = 3 * 224 * 224


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_many_inputs_of_one_sign_agree_with_float_and_onnxruntime(sign, bits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(sign * (0.9 + 0.1 * torch.rand(3, INPUTS)))
    model = prepare(network, torch.zeros(2, 3, 224, 224), QuantizationConfig(min_bits=4, ends="scheduled")).eval()
    x = torch.stack([torch.ones(3, 224, 224), torch.rand(3, 224, 224), torch.zeros(3, 224, 224)])
    calibrate(model, [x], weight_bits=bits)
    graph = freeze(model, weight_bits=bits)
    (layer,) = graph.weighted()
    assert 0.7 * INT32_MOST < worst_sum(layer, graph.tensors[layer.inputs[0]]) <= INT32_MOST
    logits = IntegerExecutor(graph)(x).numpy()
    assert np.array_equal(OnnxRuntimeModel(write_onnx(graph)).run({"image": x.numpy()})["logits"], logits)
    step = graph.tensors[graph.outputs[0]].scale
    codes = 2 ** (bits - 1) - 1
    # weights are off by half of their step at most: inputs · max|w| / codes / 2, and what the logits' step rounds
    assert np.abs(logits - network(x).detach().numpy()).max() <= INPUTS / min(codes, 50) / 2 + step


def graph_of(codes: np.ndarray, bias: int) -> IntegerGraph:
    source = QuantizedTensor("x", 1.0, 128, 8, (codes.shape[1],))
    output = QuantizedTensor("y", 1e6, 128, 8, (len(codes),))
    scales = np.ones(len(codes), np.float32)
    layer = FullyConnected(("x",), "y", codes, 0, scales, np.full(len(codes), bias, np.int32), 8, "head")
    return graph_between("x", "y", (layer,), {"x": source, "y": output})


def test_a_layer_whose_sums_leave_int32_is_refused_by_its_name():
    fits = graph_of(np.full((2, 60_000), 127, np.int8), 1000)
    check_accumulators(fits)
    for graph in (
        graph_of(np.full((2, 70_000), -127, np.int8), 0),
        graph_of(np.full((2, 60_000), 127, np.int8), -(2**30)),
    ):
        with pytest.raises(ConversionError, match=r"sums of head to fit into int32, .* can reach \d,\d{3},\d{3},\d{3}"):
            check_accumulators(graph)


def test_the_average_of_too_many_positions_is_refused():
    fits = QuantizedTensor("x", 1.0, 0, 8, (1, 2000, 4000))
    output = QuantizedTensor("mean", 1.0, 0, 8, (1, 1, 1))
    graph = graph_between("x", "mean", (GlobalAverage(("x",), "mean"),), {"x": fits, "mean": output})
    check_accumulators(graph)
    with pytest.raises(ConversionError, match="sums of mean"):
        check_accumulators(replace(graph, tensors={"x": replace(fits, shape=(1, 3000, 4000)), "mean": output}))
