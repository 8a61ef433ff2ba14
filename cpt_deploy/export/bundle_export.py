"""Export a trained CPT model to a bundle: freeze, write ONNX, record all integers and the golden sample."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.bundle import Bundle, BundleContents, CardFields, ImageProcessor, Processor, write_bundle
from cpt_deploy.bundle.layout import ANNOUNCED, FLOAT_PARTS
from cpt_deploy.bundle.runtime.operators import announced_operators
from cpt_deploy.errors import BundleError
from cpt_deploy.export.float_facts import describe_floats, float_facts
from cpt_deploy.export.further_formats import write_formats
from cpt_deploy.export.golden import golden_sample, named_inputs
from cpt_deploy.export.pixels import reading_pixels
from cpt_deploy.integer.accumulators import can_saturate
from cpt_deploy.integer.executor import Inputs
from cpt_deploy.integer.float_costs import FloatCosts, float_costs
from cpt_deploy.integer.graph import IntegerGraph, to_dict
from cpt_deploy.integer.lowering.freeze import freeze
from cpt_deploy.onnx_graph.packing import smallest_opset
from cpt_deploy.onnx_graph.writer import FLOAT_OPSET, write_onnx
from cpt_deploy.quantization.calibration.portability import reduced_layers
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.scheduled_model import WeightBits

SYMMETRIC = "symmetric"
TRAINED, CALIBRATED = "trained with cyclic precision", "calibrated only"
"""Origin of a bundle's integers, as config.json, quantization.json and the model card state it."""


@dataclass(frozen=True)
class ModelIdentity:
    """Facts of a bundle about its model, besides the integers.

    Args:
        name: Name of the model in the server.
        architecture: Name of the architecture.
        task: The task, e.g. "image-classification".
        processor: Converts requests to inputs and outputs to answers.
        facts: Further facts for config.json: data set, digest of the trained weights and the like.
        recipe: The recipe of the run, YAML text.
        card: Text of the model card, besides the facts.
        calibrated: Whether it is a float model whose ranges were calibrated, not trained with cyclic precision.
    """

    name: str
    architecture: str
    task: str
    processor: Processor
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    card: CardFields = field(default_factory=CardFields)
    calibrated: bool = False


def export_bundle(
    model: QuantizedModel,
    destination: Path | str,
    identity: ModelIdentity,
    golden_inputs: Inputs,
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    opset: int | None = None,
    formats: Sequence[str] = (),
) -> Bundle:
    """Freeze a trained model and write it as a bundle, atomically.

    Args:
        model: The model, calibrated at the bits to be exported.
        destination: Directory of the bundle; an existing bundle there is replaced.
        identity: Name, task, processor and facts.
        golden_inputs: A few inputs (N, ...) by name, or the only one, whose exact quantized outputs (of operations in
            float: real outputs with a tolerance) are stored for self-checks. States may be left out.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name; None is max_bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.
        opset: ONNX opset of model.onnx; None is the lowest with the smallest types for the weights (`write_onnx`).
        formats: Further formats of the model, keys of `cpt_deploy.bundle.FORMATS`.

    Returns:
        The bundle, opened and verified.

    Raises:
        ConversionError: If the model cannot be frozen, or cannot be written in one of the formats.
        UsageError: If bits or opset are out of range.
        BundleError: If the processor does not fit the model, or the bundle cannot be written.
    """
    graph = freeze(model, weight_bits=weight_bits, activation_bits=activation_bits)
    apart = model.conversion.apart
    if apart is not None:
        graph = replace(graph, signature=graph.signature.by_call())
    floats = float_costs(graph) if graph.has_float_operations else None
    opset = smallest_opset(graph) if opset is None else opset
    facts = {
        "weight_bits": mean_bits(weight_bits, {o.source: (o.bits, o.codes.size) for o in graph.weighted()}),
        "activation_bits": activation_bits or max(tensor.bits for tensor in graph.tensors.values()),
        **({} if identity.calibrated else {"trained_bits": [model.config.min_bits, model.config.max_bits]}),
        "opset": opset if floats is None else max(opset, FLOAT_OPSET),
        "reduced_layers": [asdict(layer) for layer in reduced_layers(model, weight_bits)],
        **({} if apart is None else {"by_call": apart}),
    }
    floating = None if floats is None else (floats, model.conversion.reason)
    return export_graph(graph, destination, identity, golden_inputs, facts=facts, floats=floating, formats=formats)


def export_graph(
    graph: IntegerGraph,
    destination: Path | str,
    identity: ModelIdentity,
    golden_inputs: Inputs,
    *,
    facts: Mapping[str, Any],
    floats: tuple[FloatCosts, str | None] | None = None,
    formats: Sequence[str] = (),
) -> Bundle:
    """Write a frozen network as a bundle, atomically.

    Args:
        graph: The network.
        destination: Directory of the bundle; an existing bundle there is replaced.
        identity: Name, task, processor and facts.
        golden_inputs: As for `export_bundle`.
        facts: Facts about bits, and the opset of model.onnx, for config.json.
        floats: What is computed in float, and why; None if nothing is.
        formats: Further formats of the model.

    Returns:
        The bundle, opened and verified.

    Raises:
        ConversionError: If the network cannot be written in one of the formats.
        UsageError: If the opset is out of range.
        BundleError: If the processor does not fit the network, or the bundle cannot be written.
    """
    if isinstance(identity.processor, ImageProcessor) and identity.processor.pixels is not None:
        graph = reading_pixels(graph, identity.processor)
    try:
        identity.processor.check(graph.signature)
        golden = named_inputs(graph.signature, golden_inputs)
    except ValueError as error:
        raise BundleError(str(error)) from error
    all_facts = {
        "quantization": CALIBRATED if identity.calibrated else TRAINED,
        **facts,
        **({"activations": SYMMETRIC} if any(tensor.signed for tensor in graph.tensors.values()) else {}),
        **({} if floats is None else float_facts(*floats)),
        "portable": not can_saturate(graph),
        **identity.facts,
    }
    description, arrays = to_dict(graph)
    onnx = write_onnx(graph, opset=facts["opset"], metadata=_onnx_metadata(identity, all_facts))
    contents = BundleContents(
        name=identity.name,
        task=identity.task,
        signature=graph.signature,
        processor=identity.processor,
        onnx=onnx,
        tensors=arrays,
        graph=description,
        quantization={
            "method": all_facts["quantization"],
            **describe_quantization(graph),
            **({} if floats is None else {FLOAT_PARTS: describe_floats(*floats)}),
            ANNOUNCED: announced_operators(onnx),
        },
        golden=golden_sample(graph, golden, onnx),
        architecture=identity.architecture,
        facts=all_facts,
        recipe=identity.recipe,
        card=replace(identity.card, calibrated=identity.calibrated, float_parts=floats is not None),
        formats=write_formats(graph, formats, golden),
    )
    return write_bundle(destination, contents=contents)


def mean_bits(weight_bits: WeightBits, layers: Mapping[str, tuple[int, int]]) -> int | float:
    """Return the bits of the scheduled layers' weights, as a bundle states them.

    Args:
        weight_bits: The requested bits.
        layers: Bits and number of the weights of each layer by name.

    Returns:
        The bits; with bits by layer, the mean over all weights of these layers.
    """
    if isinstance(weight_bits, int):
        return weight_bits
    if weight_bits is None:
        return max(bits for bits, _ in layers.values())
    chosen = [layers[name] for name in layers if name in weight_bits]
    return round(sum(bits * size for bits, size in chosen) / sum(size for _, size in chosen), 2)


def describe_quantization(graph: IntegerGraph) -> dict[str, Any]:
    """Describe each weight and each activation for `quantization.json`, with a digest of the integers."""
    weights = [
        {
            "layer": operation.source,
            "output": operation.output,
            "bits": operation.bits,
            "shift": operation.shift,
            "shape": list(operation.codes.shape),
            "granularity": "per output channel",
            "symmetric": True,
            "scale_range": [float(operation.scales.min()), float(operation.scales.max())],
            "codes_sha256": digest(operation.codes),
        }
        for operation in graph.weighted()
    ]
    activations = [
        {
            "name": tensor.name,
            "bits": tensor.bits,
            "scale": tensor.scale,
            "zero_point": tensor.zero_point,
            "shape": list(tensor.shape),
            "granularity": "per tensor",
            "symmetric": tensor.signed,
        }
        for tensor in graph.tensors.values()
    ]
    return {"weights": weights, "activations": activations}


def digest(codes: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(codes).tobytes()).hexdigest()


def _onnx_metadata(identity: ModelIdentity, facts: Mapping[str, Any]) -> dict[str, str]:
    return {
        "cpt.name": identity.name,
        "cpt.weight_bits": str(facts["weight_bits"]),
        "cpt.activation_bits": str(facts["activation_bits"]),
        **identity.processor.onnx_metadata(),
    }
