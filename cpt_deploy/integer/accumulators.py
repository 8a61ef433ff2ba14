"""Bounds of the integer sums of a frozen network: check that none exceeds int32, and find those that exceed int16."""

import math

import torch

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Embed, GlobalAverage, QuantizedTensor, WeightedOperation
from cpt_deploy.precision.accumulators import INT32_MOST, worst_average_sum, worst_sums
from cpt_deploy.quantization.numerics.folding import Codes
from cpt_deploy.quantization.numerics.saturation import saturation_limit, worst_pair_sum


def check_accumulators(graph: IntegerGraph) -> None:
    """Check that every sum of the graph fits into int32, in any order of summation.

    Raises:
        ConversionError: If one does not; names the first such layer.
    """
    for operation in graph.operations:
        if isinstance(operation, WeightedOperation) and not isinstance(operation, Embed):
            check_sum(operation.source, worst_sum(operation, graph.multiplied(operation)))
        elif isinstance(operation, GlobalAverage):
            source = graph.tensors[operation.inputs[0]]
            positions = math.prod(size or 1 for size in source.shape[1:])  # free sizes have no worst case
            check_sum(operation.output, worst_average_sum(positions, quant_max=source.quant_max - source.least))


def worst_sum(operation: WeightedOperation, source: QuantizedTensor) -> int:
    """Return the maximum magnitude of any partial sum of a layer."""
    sums = worst_sums(
        operation.executed_codes,
        operation.bias,
        quant_max=source.quant_max - source.least,
        zero_point=source.zero_point - source.least,
    )
    return int(sums.max(initial=0))


def can_saturate(graph: IntegerGraph) -> bool:
    """Return whether sums of two products in any layer can exceed 16 bits, as processors without VNNI add them."""
    return any(
        pair_can_saturate(operation.executed_codes, source.bits)
        for operation in graph.products()
        if not (source := graph.multiplied(operation)).signed
    )


def pair_can_saturate(codes: Codes, activation_bits: int) -> bool:
    """Return whether sums of two products of one output channel of codes (O, ...) can exceed 16 bits."""
    return float(worst_pair_sum(torch.from_numpy(codes).float()).amax()) > saturation_limit(activation_bits)


def check_sum(name: str, worst: int) -> None:
    """Check that the maximum sum of a layer fits into int32.

    Raises:
        ConversionError: If it does not.
    """
    if worst > INT32_MOST:
        raise ConversionError(
            f"Expected the sums of {name} to fit into int32, but from its weights and its bias they can reach "
            f"{worst:,}, {worst / INT32_MOST:.2f} times as much",
            hint="split its inputs over several layers, and add their results",
        )
