"""Decide from a model's quantized weights alone whether it can saturate 16 bits on x86 processors without VNNI.

There, onnxruntime's kernels multiply unsigned activations by signed weights and add each two adjacent products in
int16, which saturates silently (`vpmaddubsw`). Which products are adjacent depends on a kernel's packing; the verdict
here ignores the order and takes the two worst weights of an output channel, so "cannot" is certain on every such
processor and "can" is a bound. Depthwise convolutions have separate kernels that do not saturate; they are
judged likewise, to be conservative. With signed activations nothing can saturate: their kernels add in 32 bits, and two
of their products, at most 128 · 127 each, would even fit into 16.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.cpu import CpuInfo
from cpt_deploy.errors import BundleError

T = TypeVar("T")
Tensors = dict[str, npt.NDArray[Any]]

_INT16 = np.iinfo(np.int16)


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


@dataclass(frozen=True)
class ReducedRange:
    """A layer whose weights have a smaller range in a portable bundle.

    Args:
        layer: Its module path.
        channels: Number of output channels.
        reduced_channels: Number of channels with a reduced range.
        min_quant_max: The smallest max quantized value of a channel; 127 is that of 8 bits.
    """

    layer: str
    channels: int
    reduced_channels: int
    min_quant_max: int


@dataclass(frozen=True)
class Portability:
    """The reductions in a portable bundle that exclude saturation.

    Args:
        reduced: The layers whose weights have a reduced range; the measured accuracies include the cost.
    """

    reduced: tuple[ReducedRange, ...]

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


def bundle_saturation(bundle: Bundle) -> tuple[LayerSaturation, ...]:
    """Judge every layer of a bundle that multiplies activations by weights, in the order of the graph.

    Raises:
        BundleError: If the bundle's graph is incomplete or malformed.
    """
    return read_layers(bundle, _graph_layers)


def read_layers(bundle: Bundle, of_graph: Callable[[dict[str, Any], Tensors], Iterable[T]]) -> tuple[T, ...]:
    """Read quantization.json and the tensors of a bundle, and judge its layers in the order of the graph.

    Args:
        bundle: The bundle.
        of_graph: Judges the operations of an integer graph.

    Raises:
        BundleError: If the bundle's graph is incomplete or malformed.
    """
    tensors = bundle.load_tensors()
    try:
        return tuple(of_graph(bundle.quantization["graph"], tensors))
    except (KeyError, TypeError, IndexError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def _graph_layers(graph: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Iterable[LayerSaturation]:
    sources = {tensor["name"]: tensor for tensor in graph["tensors"]}
    for operation in graph["operations"]:
        if multiplies(operation):
            codes = executed_codes(operation, tensors)
            source = sources[multiplied(operation)]
            signed = bool(source.get("signed", False))
            yield layer_saturation(operation["output"], codes, int(source["bits"]), signed=signed)


def multiplies(operation: dict[str, Any]) -> bool:
    """Return whether an operation of a bundle's graph multiplies weights; Embed looks up rows without multiplying."""
    return isinstance(operation.get("codes"), dict) and operation["type"] != "Embed"


def multiplied(operation: dict[str, Any]) -> str:
    """Return the name of the tensor that an operation with weights multiplies."""
    return str(operation["hidden"] if operation["type"] == "Recurrent" else operation["inputs"][0])


def executed_codes(operation: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int8]:
    """Return the quantized weights of an operation of a bundle's graph as executed, after the shift."""
    codes: npt.NDArray[np.int8] = tensors[operation["codes"]["tensor"]] << np.int8(operation["shift"])
    return codes


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


def _two_largest(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of the two largest of the non-negative values of each row; a missing second one counts 0."""
    if values.shape[1] > 2:
        values = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:]
    sums: npt.NDArray[np.int64] = values.sum(axis=1)
    return sums
