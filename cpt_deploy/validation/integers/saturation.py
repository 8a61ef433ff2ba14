"""What of a bundle could overflow or saturate: its sums against int32, and pairs of products on CPUs without VNNI."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.cpu import CpuInfo
from cpt_deploy.errors import BundleError
from cpt_deploy.integer.accumulators import Accumulator, LayerSaturation, accumulators, saturations
from cpt_deploy.integer.stored import graph_from_bundle
from cpt_deploy.precision.accumulators import INT32_MOST, ReducedLayer


@dataclass(frozen=True)
class Portability:
    """The reductions in a portable bundle that exclude saturation.

    Args:
        reduced: The layers whose weights have a reduced range; the measured accuracies include the cost.
    """

    reduced: tuple[ReducedLayer, ...]

    @property
    def channels(self) -> int:
        """Number of output channels with a reduced range."""
        return sum(layer.reduced_channels for layer in self.reduced)


def bundle_portability(bundle: Bundle) -> Portability | None:
    """Return the reductions of a bundle that was exported as portable, else None.

    Raises:
        BundleError: If it claims to be portable, but does not list the reduced layers.
    """
    if not bundle.facts.get("portable"):
        return None
    try:
        return Portability(tuple(ReducedLayer(**entry) for entry in bundle.facts["reduced_layers"]))
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"Expected config.json of the portable bundle {bundle.path} to list reduced_layers, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def bundle_saturation(bundle: Bundle) -> tuple[LayerSaturation, ...]:
    """Judge every layer of a bundle that multiplies activations by weights, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph is incomplete or malformed.
    """
    return tuple(saturations(graph_from_bundle(bundle)))


def bundle_accumulators(bundle: Bundle) -> tuple[Accumulator, ...]:
    """Bound the sums of every layer and average of a bundle, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph is incomplete or malformed.
    """
    return tuple(accumulators(graph_from_bundle(bundle)))


def overflow_reasons(found: Sequence[Accumulator]) -> list[str]:
    """Return a reason for each layer whose sums can overflow int32; empty if none can."""
    return [
        f"the sums of {entry.name!r} can reach {entry.worst_sum:,}, which int32 does not hold"
        for entry in found
        if entry.worst_sum > INT32_MOST
    ]


def saturation_entry(layers: Sequence[LayerSaturation], cpu: CpuInfo) -> dict[str, Any]:
    """Return the saturation entry of validation.json, as JSON types.

    Args:
        layers: The verdicts.
        cpu: The processor of the validation.
    """
    possible = any(layer.possible for layer in layers)
    return {
        "possible_without_vnni": possible,
        "applies_to_this_cpu": None if cpu.saturates is None else possible and cpu.saturates,
        "layers": [asdict(layer) | {"possible": layer.possible} for layer in layers],
    }


def portability_reasons(layers: Sequence[LayerSaturation], portability: Portability | None) -> list[str]:
    """Return a reason if a bundle was exported as portable but can saturate; otherwise nothing."""
    possible = [layer.name for layer in layers if layer.possible]
    if portability is None or not possible:
        return []
    return [f"the bundle was exported as portable, but {len(possible)} layers can saturate, first {possible[0]!r}"]
