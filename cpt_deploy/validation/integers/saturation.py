"""Whether a model can meet the 16-bit saturation of x86 processors without VNNI, decided from its weight codes alone.

There, onnxruntime's kernels multiply unsigned activations by signed weights and add each two adjacent products in
int16, which saturates silently (`vpmaddubsw`). Which products are adjacent depends on the packing of a kernel; the
verdict here ignores the order and takes the two worst codes of an output channel, so "cannot" is certain on every such
processor and "can" is an upper bound. Depthwise convolutions have kernels of their own that do not saturate; they are
judged alike, to stay on the safe side. Beside signed activations nothing can saturate: their kernels add in 32 bits,
and two products of theirs, at most 128 · 127 each, would fit into 16.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.bundle.runtime.cpu import CpuInfo
from cpt_deploy.errors import BundleError

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class LayerSaturation:
    """How near a layer comes to the 16-bit limits.

    Args:
        name: Name of the layer's output tensor, of a language model's product the layer's own.
        activation_bits: Bits of its input.
        worst_pair: The greatest magnitude that two products can add up to.
        channels: Number of output channels.
        channels_at_risk: How many of them can leave the range of int16.
    """

    name: str
    activation_bits: int
    worst_pair: int
    channels: int
    channels_at_risk: int

    @property
    def possible(self) -> bool:
        """Whether saturation can happen in this layer on a processor without VNNI."""
        return self.channels_at_risk > 0


@dataclass(frozen=True)
class ReducedRange:
    """A layer whose weights have a smaller range in a portable bundle.

    Args:
        layer: Its module path.
        channels: Number of output channels.
        reduced_channels: In how many of them the range was reduced.
        least_levels: The smallest greatest code of a channel; 127 is that of 8 bits.
    """

    layer: str
    channels: int
    reduced_channels: int
    least_levels: int


@dataclass(frozen=True)
class Portability:
    """What a portable bundle gave up so that nothing can saturate.

    Args:
        reduced: The layers in which the range of codes was reduced; what that costs is in the accuracies.
    """

    reduced: tuple[ReducedRange, ...]

    @property
    def channels(self) -> int:
        """Number of output channels in which the range was reduced."""
        return sum(layer.reduced_channels for layer in self.reduced)


def bundle_portability(bundle: OpenedBundle) -> Portability | None:
    """Return what a bundle gave up if it was exported to be portable, else None.

    Raises:
        BundleError: If it says that it is portable, but not what was reduced.
    """
    if not bundle.facts.get("portable"):
        return None
    try:
        return Portability(tuple(ReducedRange(**entry) for entry in bundle.facts["reduced_layers"]))
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"Expected config.json of the portable bundle {bundle.path} to list reduced_layers, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def layer_saturation(
    name: str, codes: npt.NDArray[np.int8], activation_bits: int, *, signed: bool = False
) -> LayerSaturation:
    """Bound the sum of any two products of a layer.

    Args:
        name: Name of the layer, for the report.
        codes: Weight codes, output channels first: (O, ...).
        activation_bits: Bits of its input.
        signed: Whether codes of the input are -2^(bits - 1) to 2^(bits - 1) - 1, and not 0 to 2^bits - 1.
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
        worst_pair=int(max(above.max(initial=0), below.max(initial=0))),
        channels=len(rows),
        channels_at_risk=int(at_risk.sum()),
    )


def bundle_saturation(bundle: OpenedBundle) -> tuple[LayerSaturation, ...]:
    """Judge every layer of a bundle that multiplies codes by weights, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph does not hold what it should.
    """
    tensors = bundle.load_tensors()
    try:
        if isinstance(bundle, LanguageBundle):
            return tuple(_products(bundle.quantization["activations"], tensors))
        return tuple(_graph_layers(bundle.quantization["graph"], tensors))
    except (KeyError, TypeError, IndexError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def _graph_layers(graph: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[LayerSaturation]:
    sources = {tensor["name"]: tensor for tensor in graph["tensors"]}
    for operation in graph["operations"]:
        if "codes" in operation and operation["type"] != "Embed":  # whose rows are looked up and not multiplied
            codes = executed_codes(operation, tensors)
            source = sources[operation["inputs"][0]]
            signed = bool(source.get("signed", False))
            yield layer_saturation(operation["output"], codes, int(source["bits"]), signed=signed)


def executed_codes(operation: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int8]:
    """Return the codes of an operation of a bundle's graph as they multiply activations."""
    codes: npt.NDArray[np.int8] = tensors[operation["codes"]["tensor"]] << np.int8(operation["shift"])
    return codes


def _products(activations: Sequence[dict[str, Any]], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[LayerSaturation]:
    """Judge the products of a language model, each by the codes that it reads."""
    for entry in activations:
        name = entry["name"].removesuffix(".codes")
        yield layer_saturation(name, tensors[f"{name}.weight"], int(entry["bits"]))


def saturation_entry(layers: Sequence[LayerSaturation], cpu: CpuInfo) -> dict[str, Any]:
    """Return what validation.json says of saturation, as JSON types.

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
    """Return why a bundle is not portable though it was exported to be; nothing if it is, or was not."""
    possible = [layer.name for layer in layers if layer.possible]
    if portability is None or not possible:
        return []
    return [f"the bundle was exported as portable, but {len(possible)} layers can saturate, first {possible[0]!r}"]


def _two_largest(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of the two largest values of each row; none are negative, and a missing second one counts 0."""
    if values.shape[1] > 2:
        values = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:]
    sums: npt.NDArray[np.int64] = values.sum(axis=1)
    return sums
