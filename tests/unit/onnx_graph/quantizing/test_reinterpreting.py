"""Linear functions of whole tensors cost nothing: the same integers with other parameters."""

import numpy as np
import pytest

from cpt_deploy.integer.operations import Reinterpret
from tests.unit.onnx_graph.reading.networks import Network, proven, samples

SHAPE = (2, 3, 12, 12)


def network_of(function: str, factor: float = 0.8, offset: float = 0.3) -> bytes:
    """Return a network with a function between convolutions."""
    network = Network(["N", 3, "H", "W"])
    x = network.conv("x", 3, 8)
    number = np.float32
    match function:
        case "hard swish":
            x = network.op("Mul", x, network.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
        case "line":
            x = network.op("Add", network.op("Mul", network.op("Sigmoid", x), number(factor)), number(offset))
            x = network.op("Mul", x, network.conv("x", 3, 8))
            x = network.op("Add", network.op("Mul", x, number(factor)), number(offset))
        case "line of a sum":
            x = network.op("Add", x, network.conv("x", 3, 8))
            x = network.op("Add", network.op("Mul", x, number(factor)), number(offset))
        case "line of a sum that is read elsewhere":
            x = network.op("Add", x, network.conv("x", 3, 8))
            x = network.op("Add", x, network.op("Add", network.op("Mul", x, number(factor)), number(offset)))
        case "clamped line of a sum":
            x = network.op("Add", x, network.conv("x", 3, 8))
            x = network.op("Relu", network.op("Add", network.op("Mul", x, number(factor)), number(offset)))
    return network.file(network.op("GlobalAveragePool", network.conv(x, 8, 8)))


@pytest.mark.parametrize("function", ["hard swish", "line", "line of a sum", "clamped line of a sum"])
@pytest.mark.parametrize("offset", [-0.4, -0.001, 0.0, 0.3])
def test_a_linear_function_needs_no_operator(function: str, offset: float) -> None:
    result, operators = proven(network_of(function, offset=offset), samples(SHAPE), least=25)
    assert any(isinstance(operation, Reinterpret) for operation in result.graph.operations)
    assert operators["QLinearConv"] <= 3 + (function == "line")  # a table's result keeps its parameters


@pytest.mark.parametrize(
    ("function", "factor", "offset"),
    [("line of a sum", -0.8, 0.3), ("line of a sum that is read elsewhere", 0.8, 40.0)],
    ids=["falling", "too coarse for another reader"],
)
def test_a_function_that_others_would_suffer_from_is_a_layer(function: str, factor: float, offset: float) -> None:
    result, operators = proven(network_of(function, factor, offset), samples(SHAPE))
    assert not any(isinstance(operation, Reinterpret) for operation in result.graph.operations)
    assert operators["QLinearConv"] == 4


def test_a_hard_sigmoid_of_a_convolution_is_its_clamp() -> None:
    network = Network(["N", 3, 12, 12])
    x = network.conv("x", 3, 8)
    gate = network.conv(network.op("GlobalAveragePool", x), 8, 8, 1)
    x = network.op("Mul", x, network.op("HardSigmoid", gate, alpha=0.2, beta=0.5))
    _, operators = proven(network.file(network.op("GlobalAveragePool", network.conv(x, 8, 8))), samples(SHAPE))
    assert operators["QLinearConv"] == 3
    assert "HardSigmoid" not in operators
