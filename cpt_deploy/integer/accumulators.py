"""Bounds of the sums of a frozen network's layers, from its integers alone: against int32 and, in pairs, int16.

On x86 processors without VNNI, onnxruntime's kernels multiply unsigned activations by signed weights and add each two
adjacent products in int16, which saturates silently (`vpmaddubsw`). Which products are adjacent depends on a kernel's
packing; the verdict here ignores the order and takes the two worst weights of an output channel, so "cannot" is certain
on every such processor and "can" is a bound. Depthwise convolutions have separate kernels that do not saturate; they
are judged likewise, to be conservative. With signed activations nothing can saturate: their kernels add in 32 bits, and
two of their products, at most 128 · 127 each, would even fit into 16.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Codes, GlobalAverage, WeightedOperation
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.precision.accumulators import INT32_MOST, worst_average_sum, worst_sums

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Accumulator:
    """The bound of a layer's integer sums.

    Args:
        name: Name of the layer's output tensor.
        worst_sum: The max magnitude of a partial sum, for any input and any order of summation.
    """

    name: str
    worst_sum: int

    @property
    def share(self) -> float:
        """The worst sum as a share of the int32 range."""
        return self.worst_sum / INT32_MOST


@dataclass(frozen=True)
class LayerSaturation:
    """The bound of a layer's pairs of products, against the 16-bit limits.

    Args:
        name: Name of the layer's output tensor.
        activation_bits: Bits of its input.
        worst_pair_sum: The max magnitude of the sum of two products.
        channels: Number of output channels.
        channels_at_risk: Number of channels that can leave the range of int16.
    """

    name: str
    activation_bits: int
    worst_pair_sum: int
    channels: int
    channels_at_risk: int

    @property
    def possible(self) -> bool:
        """Whether saturation can happen in this layer on a processor without VNNI."""
        return self.channels_at_risk > 0


def accumulators(graph: IntegerGraph) -> Iterator[Accumulator]:
    """Bound the sums of every layer and average of a graph, in its order."""
    products = {operation.output for operation in graph.products()}
    for operation in graph.operations:
        if operation.output in products and isinstance(operation, WeightedOperation):
            yield Accumulator(operation.output, worst_sum(operation, graph.multiplied(operation)))
        elif isinstance(operation, GlobalAverage):
            source = graph.tensors[operation.inputs[0]]
            positions = math.prod(size or 1 for size in source.shape[1:])  # free sizes have no worst case
            width = source.quant_max - source.quant_min
            yield Accumulator(operation.output, worst_average_sum(positions, quant_max=width))


def worst_sum(operation: WeightedOperation, source: QuantizedTensor) -> int:
    """Return the maximum magnitude of any partial sum of a layer."""
    sums = worst_sums(
        operation.executed_codes,
        operation.bias,
        quant_max=source.quant_max - source.quant_min,
        zero_point=source.zero_point - source.quant_min,
    )
    return int(sums.max(initial=0))


def check_accumulators(graph: IntegerGraph) -> None:
    """Check that every sum of the graph fits into int32, in any order of summation.

    Raises:
        ConversionError: If one does not; names the first such layer.
    """
    sources = {operation.output: operation.source for operation in graph.weighted()}
    for entry in accumulators(graph):
        if entry.worst_sum > INT32_MOST:
            raise ConversionError(
                f"Expected the sums of {sources.get(entry.name, entry.name)} to fit into int32, but from its weights "
                f"and its bias they can reach {entry.worst_sum:,}, {entry.share:.2f} times as much",
                hint="split its inputs over several layers, and add their results",
            )


def saturations(graph: IntegerGraph) -> Iterator[LayerSaturation]:
    """Judge every layer of a graph that multiplies activations by weights, in its order."""
    for operation in graph.products():
        source = graph.multiplied(operation)
        yield layer_saturation(operation.output, operation.executed_codes, source.bits, signed=source.signed)


def can_saturate(graph: IntegerGraph) -> bool:
    """Return whether sums of two products in any layer can exceed 16 bits, as processors without VNNI add them."""
    return any(layer.possible for layer in saturations(graph))


def layer_saturation(name: str, codes: Codes, activation_bits: int, *, signed: bool = False) -> LayerSaturation:
    """Bound the sum of any two products of a layer.

    Args:
        name: Name of the layer, for the report.
        codes: Quantized weights, output channels first: (O, ...).
        activation_bits: Bits of its input.
        signed: Whether the quantized input is -2^(bits - 1) to 2^(bits - 1) - 1 instead of 0 to 2^bits - 1.
    """
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    least = -(2 ** (activation_bits - 1)) if signed else 0
    greatest = least + 2**activation_bits - 1
    above = _two_largest(np.maximum(greatest * rows, least * rows))
    below = _two_largest(np.maximum(-greatest * rows, -least * rows))
    at_risk = (above > _INT16.max) | (below > -int(_INT16.min))
    return LayerSaturation(
        name=name,
        activation_bits=activation_bits,
        worst_pair_sum=int(max(above.max(initial=0), below.max(initial=0))),
        channels=len(rows),
        channels_at_risk=int(at_risk.sum()),
    )


def _two_largest(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of the two largest of the non-negative values of each row; a missing second one counts 0."""
    if values.shape[1] > 2:
        values = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:]
    sums: NDArray[np.int64] = values.sum(axis=1)
    return sums
