"""Whether a sum of a bundle's layers could leave int32, decided from its codes alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.errors import BundleError
from cpt_deploy.precision.accumulators import INT32_MOST, worst_average_sum, worst_sums
from cpt_deploy.validation.integers.saturation import executed_codes


@dataclass(frozen=True)
class Accumulator:
    """How near the sums of a layer come to the ends of int32.

    Args:
        name: Name of the layer's output tensor, of a language model's product the layer's own.
        worst_sum: The greatest magnitude that a partial sum can have, whatever the input and the order of summation.
    """

    name: str
    worst_sum: int

    @property
    def share(self) -> float:
        """The worst sum as a share of what int32 holds."""
        return self.worst_sum / INT32_MOST


def bundle_accumulators(bundle: OpenedBundle) -> tuple[Accumulator, ...]:
    """Bound the sums of every layer and average of a bundle, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph does not hold what it should.
    """
    tensors = bundle.load_tensors()
    try:
        if isinstance(bundle, LanguageBundle):
            return tuple(_products(bundle.quantization["activations"], tensors))
        return tuple(_graph_sums(bundle.quantization["graph"], tensors))
    except (KeyError, TypeError, IndexError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def _graph_sums(graph: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[Accumulator]:
    sources = {tensor["name"]: tensor for tensor in graph["tensors"]}
    for operation in graph["operations"]:
        name = operation["output"]
        if operation["type"] == "GlobalAverage":
            source = sources[operation["inputs"][0]]
            yield Accumulator(name, worst_average_sum(math.prod(source["shape"][1:]), levels=_levels(source)))
        elif "codes" in operation and operation["type"] != "Embed":
            source = sources[operation["inputs"][0]]
            least = -(2 ** (int(source["bits"]) - 1)) if source.get("signed") else 0
            worst = worst_sums(
                executed_codes(operation, tensors),
                tensors[operation["bias"]["tensor"]],
                levels=_levels(source),
                zero_point=int(source["zero_point"]) - least,
            )
            yield Accumulator(name, int(worst.max(initial=0)))


def _products(activations: Sequence[dict[str, Any]], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[Accumulator]:
    for entry in activations:
        name = entry["name"].removesuffix(".codes")
        worst = worst_sums(tensors[f"{name}.weight"], levels=_levels(entry), zero_point=int(entry["zero_point"]))
        yield Accumulator(name, int(worst.max(initial=0)))


def _levels(tensor: dict[str, Any]) -> int:
    return int(2 ** int(tensor["bits"]) - 1)


def overflow_reasons(accumulators: Sequence[Accumulator]) -> list[str]:
    """Return why a bundle's sums are not exact everywhere; nothing if all of them fit into int32."""
    return [
        f"the sums of {entry.name!r} can reach {entry.worst_sum:,}, which int32 does not hold"
        for entry in accumulators
        if entry.worst_sum > INT32_MOST
    ]
