"""Fewer bits and symmetric activations of ONNX networks: the integers are those that were asked for, and exact."""

import numpy as np
import pytest

from cpt_deploy.errors import UsageError
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.quantizing.precision import Precision
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers
from tests.unit.onnx_graph.reading.networks import Network, run, samples, sqnr

SHAPE = (2, 3, 12, 12)


def mixed() -> bytes:
    """Return a network of layers, sums, hard swish, movements, a transposed convolution and a float part."""
    network = Network(["N", *SHAPE[1:]])
    x = network.op("Relu", network.conv("x", 3, 8))
    y = network.conv(x, 8, 8)
    y = network.op("Mul", y, network.op("HardSigmoid", y, alpha=1 / 6, beta=0.5))
    y = network.op("Relu", network.conv(y, 8, 8, group=8))
    x = network.op("Add", x, network.conv(y, 8, 8))
    up = network.op("ConvTranspose", x, network.weight(8, 4, 2, 2), network.weight(4), strides=[2, 2])
    up = network.op("MaxPool", network.op("Sigmoid", up), kernel_shape=[2, 2], strides=[2, 2])
    x = network.op("Softmax", network.conv(up, 4, 8), axis=1)
    x = network.op("Flatten", network.op("GlobalAveragePool", network.conv(x, 8, 8)))
    return network.file(network.op("Gemm", x, network.weight(5, 8), network.weight(5), transB=1))


def is_exact(file: bytes, precision: Precision, least: float) -> None:
    given = samples(SHAPE)
    result = quantize_onnx(read_onnx(file), given, precision)
    written = write_onnx(result.graph)
    for sample in given[:2]:
        assert compare_integers(result.graph, written, sample).mismatches == 0
        assert sqnr(run(file, sample)[0], run(written, sample)[0]) > least


@pytest.mark.parametrize(
    ("weights", "activations", "least"), [(7, 8, 20), (4, 8, 10), (3, 4, 5), (2, 8, 0), (8, 6, 15)]
)
def test_fewer_bits_are_exact(weights: int, activations: int, least: float) -> None:
    precision, file = Precision(weights, activations), mixed()
    is_exact(file, precision, least)
    graph = quantize_onnx(read_onnx(file), samples(SHAPE), precision).graph
    layers = graph.weighted()
    assert {o.bits for o in layers[1:-1] if o.codes.shape[1:] != (1, 1, 1)} == {weights}
    assert {layers[0].bits, layers[-1].bits} == {8}
    assert all(np.abs(o.codes).max() <= 2 ** (o.bits - 1) - 1 for o in layers)
    assert {tensor.bits for tensor in graph.tensors.values()} == {8, activations}


def test_each_layer_has_its_own_bits() -> None:
    file = mixed()
    name = quantize_onnx(read_onnx(file), samples(SHAPE)).graph.weighted()[1].source
    graph = quantize_onnx(read_onnx(file), samples(SHAPE), Precision({name: 4})).graph
    assert {o.source for o in graph.weighted() if o.bits == 4} == {name}
    is_exact(file, Precision({name: 4}), 15)
    with pytest.raises(UsageError, match=r"Expected bits of layers of the network, .*, but got 'other'"):
        quantize_onnx(read_onnx(file), samples(SHAPE), Precision({"other": 4}))


def test_symmetric_activations_are_exact() -> None:
    is_exact(mixed(), Precision(symmetric=True), 20)
    graph = quantize_onnx(read_onnx(mixed()), samples(SHAPE), Precision(symmetric=True)).graph
    assert all(tensor.signed and tensor.zero_point == 0 for tensor in graph.tensors.values())


def clamped(kind: str) -> bytes:
    """Return a network with a clamp at 0 behind an operation, and a convolution that reads it."""
    network = Network(["N", *SHAPE[1:]])
    x = network.conv("x", 3, 8)
    match kind:
        case "Relu":
            x = network.op("Relu", x)
        case "Clip":
            x = network.op("Clip", x, np.array(0, np.float32), np.array(0.5, np.float32))
        case "HardSigmoid":
            x = network.op("HardSigmoid", network.op("Mul", x, np.array(8, np.float32)), alpha=1 / 6, beta=0.5)
        case "Add":
            x = network.op("Relu", network.op("Add", x, network.conv("x", 3, 8)))
        case "Concat":
            x = network.op("Relu", network.op("Concat", x, network.conv("x", 3, 8), axis=1))
        case "ConvTranspose":
            x = network.op("ConvTranspose", x, network.weight(8, 8, 2, 2), network.weight(8), strides=[2, 2])
            x = network.op("Relu", x)
        case _:
            x = network.op("Relu", network.op("GlobalAveragePool", x))
    return network.file(x, network.conv(x, 16 if kind == "Concat" else 8, 4, 1, pads=[0] * 4))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["Relu", "Clip", "HardSigmoid", "Add", "Concat", "ConvTranspose", "GlobalAveragePool"])
def test_clamps_are_kept(kind: str, symmetric: bool) -> None:
    file, given = clamped(kind), samples(SHAPE)
    result = quantize_onnx(read_onnx(file), given, Precision(symmetric=symmetric))
    written = write_onnx(result.graph)
    assert compare_integers(result.graph, written, given[0]).mismatches == 0
    wanted, got = run(file, given[0]), run(written, given[0])
    assert got[0].min() >= 0
    assert min(map(sqnr, wanted, got)) > (25 if symmetric else 30)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": 1}, "Expected 2 to 8 bits, but got 1"),
        ({"activations": 9}, "Expected 2 to 8 bits, but got 9"),
        ({"activations": 4, "symmetric": True}, "Expected activations of 8 bits to make them symmetric, but got 4"),
    ],
)
def test_bits_out_of_range_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Precision(**wrong)  # type: ignore[arg-type]
