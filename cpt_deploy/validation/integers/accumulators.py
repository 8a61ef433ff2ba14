"""Bound the integer sums of a bundle's layers, from its quantized weights alone, to exclude int32 overflow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.precision.accumulators import INT32_MOST, worst_average_sum, worst_sums
from cpt_deploy.validation.integers.saturation import executed_codes, multiplied, multiplies, read_layers


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


def bundle_accumulators(bundle: Bundle) -> tuple[Accumulator, ...]:
    """Bound the sums of every layer and average of a bundle, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph is incomplete or malformed.
    """
    return read_layers(bundle, _graph_sums)


def _graph_sums(graph: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[Accumulator]:
    sources = {tensor["name"]: tensor for tensor in graph["tensors"]}
    for operation in graph["operations"]:
        name = operation["output"]
        if operation["type"] == "GlobalAverage":
            source = sources[operation["inputs"][0]]
            yield Accumulator(name, worst_average_sum(math.prod(source["shape"][1:]), quant_max=_quant_max(source)))
        elif multiplies(operation):
            source = sources[multiplied(operation)]
            least = -(2 ** (int(source["bits"]) - 1)) if source.get("signed") else 0
            worst = worst_sums(
                executed_codes(operation, tensors),
                tensors[operation["bias"]["tensor"]],
                quant_max=_quant_max(source),
                zero_point=int(source["zero_point"]) - least,
            )
            yield Accumulator(name, int(worst.max(initial=0)))


def _quant_max(tensor: dict[str, Any]) -> int:
    return int(2 ** int(tensor["bits"]) - 1)


def overflow_reasons(accumulators: Sequence[Accumulator]) -> list[str]:
    """Return a reason for each layer whose sums can overflow int32; empty if none can."""
    return [
        f"the sums of {entry.name!r} can reach {entry.worst_sum:,}, which int32 does not hold"
        for entry in accumulators
        if entry.worst_sum > INT32_MOST
    ]
