"""Channels of very different ranges before a depthwise layer: each has to keep its own precision."""

from collections.abc import Callable

import numpy as np
import pytest

from cpt_deploy.onnx_graph.writer import write_onnx
from tests.unit.onnx_graph.reading.networks import Network, proven, run, samples, sqnr

CHANNELS = 8
Activation = Callable[[Network, str], str]


def unequal(activation: Activation, *, reader: str = "depthwise") -> Network:
    """Return a network whose first layer has channels of ranges from 1 to 1/64, which the second makes equal again."""
    network = Network(["N", 3, 12, 12])
    ranges = np.geomspace(1, 1 / 64, CHANNELS).astype(np.float32)
    weight, bias = network.weight(CHANNELS, 3, 3, 3), network.weight(CHANNELS)
    x = network.op("Conv", "x", weight * ranges.reshape(-1, 1, 1, 1), bias * ranges, pads=[1] * 4)
    x = activation(network, x)
    if reader == "depthwise":
        weight = network.weight(CHANNELS, 1, 3, 3) / ranges.reshape(-1, 1, 1, 1)
        x = network.op("Conv", x, weight, network.weight(CHANNELS), pads=[1] * 4, group=CHANNELS)
    else:
        x = network.op("BatchNormalization", x, 1 / ranges, *np.zeros((2, CHANNELS), np.float32), np.ones_like(ranges))
        x = network.conv(x, CHANNELS, CHANNELS, group=CHANNELS)
    network.nodes[-1].output[0] = "result"
    return network


def pooled(network: Network, x: str) -> str:
    return network.op("MaxPool", network.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])


def added(network: Network, x: str) -> str:
    return network.op("Relu", network.op("Add", network.op("HardSwish", x), x))


ACTIVATIONS: dict[str, Activation] = {
    "none": lambda network, x: x,
    "relu": lambda network, x: network.op("Relu", x),
    "hard swish": lambda network, x: network.op("HardSwish", x),
    "leaky relu": lambda network, x: network.op("LeakyRelu", x, alpha=0.1),
    "pooled": pooled,
    "added": added,
}


@pytest.mark.parametrize(
    ("activation", "reader"), [*((name, "depthwise") for name in ACTIVATIONS), ("relu", "BatchNormalization")]
)
def test_a_channel_of_a_small_range_keeps_its_precision(activation: str, reader: str) -> None:
    file = unequal(ACTIVATIONS[activation], reader=reader).file("result")
    given = samples((2, 3, 12, 12))
    result, _ = proven(file, given)
    (wanted,), (got,) = run(file, given[0]), run(write_onnx(result.graph), given[0])
    assert min(sqnr(wanted[:, channel], got[:, channel]) for channel in range(CHANNELS)) > 20
    assert result.placement.integer_share == 1


@pytest.mark.parametrize("bounded", ["Clip", "Sigmoid"])
def test_functions_that_are_not_homogeneous_keep_their_values(bounded: str) -> None:
    bounds = (np.float32(0), np.float32(0.7)) if bounded == "Clip" else ()
    network = unequal(lambda network, x: network.op(bounded, x, *bounds))
    proven(network.file("result"), samples((2, 3, 12, 12)), least=15)


def test_channels_that_are_read_in_float_or_are_outputs_keep_their_values() -> None:
    network = unequal(lambda network, x: network.op("Relu", x))
    hidden = network.nodes[1].output[0]
    total = network.op("ReduceSum", hidden, keepdims=0)
    proven(network.file("result", hidden, total), samples((2, 3, 12, 12)), least=15)
