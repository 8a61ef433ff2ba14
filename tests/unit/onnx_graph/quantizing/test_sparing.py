"""Small layers before a logarithm, for which 8 bits are too few: they stay in float, and the others do not."""

import numpy as np

from tests.unit.onnx_graph.reading.networks import Network, proven, samples

MOST_IN_FLOAT = 0.1


def spectrum(*, filters: int) -> tuple[Network, str]:
    """Return a network of filters, the logarithm of their power, and two layers with many more products."""
    network = Network(["N", 1, 16, 16])
    ranges = np.geomspace(1, 1e-4, filters).astype(np.float32)
    x = network.op("Conv", "x", network.weight(filters, 1, 1, 1) * ranges.reshape(-1, 1, 1, 1))
    x = network.op("Log", network.op("Add", network.op("Mul", x, x), np.float32(1e-10)))
    x = network.op("Relu", network.conv(x, filters, 16))
    return network, network.conv(x, 16, 4)


def test_a_small_layer_that_causes_most_of_the_error_stays_in_float() -> None:
    network, output = spectrum(filters=4)
    result, operators = proven(network.file(output), samples((2, 1, 16, 16)))
    (layer,) = result.placement.float_layers
    assert layer.operator == "Conv"
    assert layer.reason == "most of the error would come from them"
    assert result.placement.integer_share > 1 - MOST_IN_FLOAT
    assert operators["QLinearConv"] == 2


def test_a_layer_that_is_most_of_the_work_stays_on_integers() -> None:
    network = Network(["N", 8, 16, 16])
    x = network.conv("x", 8, 16)
    x = network.conv(network.op("Log", network.op("Add", network.op("Mul", x, x), np.float32(1e-7))), 16, 2, 1)
    result, _ = proven(network.file(x), samples((2, 8, 16, 16)), least=5)
    assert not result.placement.float_layers


def test_a_network_that_is_accurate_enough_has_no_layer_in_float() -> None:
    network = Network(["N", 4, 16, 16])
    x = network.op("Exp", network.op("Tanh", network.conv("x", 4, 4, 1)))
    x = network.conv(network.op("Relu", network.conv(x, 4, 16)), 16, 16)
    result, operators = proven(network.file(x), samples((2, 4, 16, 16)))
    assert not result.placement.float_layers
    assert operators["QLinearConv"] == 3
