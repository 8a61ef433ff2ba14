"""Export a trained language model to a bundle: freeze, write ONNX, record the golden sample."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, BundleContents, write_bundle
from cpt_deploy.bundle.layout import ANNOUNCED
from cpt_deploy.bundle.runtime.operators import announced_operators
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.export.bundle_export import TRAINED, ModelIdentity, digest, mean_bits
from cpt_deploy.export.language.golden import golden_tokens
from cpt_deploy.export.language.graph import chosen_opset
from cpt_deploy.export.language.kinds import language_signature, write_language_onnx
from cpt_deploy.integer.language import IntegerLanguageModel, IntegerTable, freeze_language_model
from cpt_deploy.integer.language.model import weighted_parts
from cpt_deploy.quantization.language import QuantizedLanguageModel
from cpt_deploy.quantization.state.portability import reduced_layers
from cpt_deploy.quantization.state.scheduled_model import WeightBits
from cpt_deploy.signature import to_json


def export_language_bundle(
    model: QuantizedLanguageModel,
    destination: Path | str,
    identity: ModelIdentity,
    golden_text: npt.NDArray[np.integer[Any]],
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    opset: int | None = None,
) -> Bundle:
    """Freeze a trained language model and write it as a bundle, atomically.

    Args:
        model: The model, calibrated at the bits to be exported.
        destination: Directory of the bundle; an existing bundle there is replaced.
        identity: Name, task, processor and facts.
        golden_text: Tokens of a text; the exact logits of its beginning are stored for self-checks.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name; None is max_bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.
        opset: ONNX opset of model.onnx; None is the lowest with the smallest types for the weights (`chosen_opset`).

    Raises:
        ConversionError: If the model cannot be frozen.
        UsageError: If bits or opset are out of range.
        BundleError: If the tokens do not fit the model, or the bundle cannot be written.
    """
    frozen = freeze_language_model(model, weight_bits=weight_bits, activation_bits=activation_bits)
    opset = chosen_opset(frozen, opset)
    portable = not any(linear.can_saturate for linear in frozen.linears())
    facts = {
        "weight_bits": mean_bits(
            weight_bits, {part.name: (part.bits, part.codes.size) for part in weighted_parts(frozen)}
        ),
        "activation_bits": activation_bits or model.precision.max_bits,
        "quantization": TRAINED,
        "trained_bits": [model.config.min_bits, model.config.max_bits],
        "opset": opset,
        "portable": portable,
        "reduced_layers": [asdict(layer) for layer in reduced_layers(model, weight_bits)],
        **identity.facts,
    }
    metadata = {
        "cpt.name": identity.name,
        "cpt.weight_bits": str(facts["weight_bits"]),
        "cpt.activation_bits": str(facts["activation_bits"]),
        **identity.processor.onnx_metadata(),
        **({PORTABLE_KEY: "true"} if portable else {}),
    }
    onnx = write_language_onnx(frozen, opset=opset, metadata=metadata)
    signature = language_signature(frozen)
    contents = BundleContents(
        name=identity.name,
        task=identity.task,
        signature=signature,
        processor=identity.processor,
        onnx=onnx,
        tensors=frozen.arrays(),
        graph={**frozen.describe(), "signature": to_json(signature)},
        quantization={**describe_language_quantization(frozen), ANNOUNCED: announced_operators(onnx)},
        golden=golden_tokens(frozen, onnx, golden_text),
        architecture=identity.architecture,
        facts=facts,
        recipe=identity.recipe,
        card=identity.card,
    )
    return write_bundle(destination, contents=contents)


def describe_language_quantization(model: IntegerLanguageModel) -> dict[str, Any]:
    """Describe each weight and each input of a product for `quantization.json`, with a digest of the integers."""
    weights = [
        {
            "layer": part.name,
            "bits": part.bits,
            "shape": list(part.codes.shape),
            "granularity": "per row" if isinstance(part, IntegerTable) else "per output channel",
            "symmetric": True,
            "greatest_code": int(np.abs(part.codes.astype(np.int16)).max(initial=0)),
            "scale_range": [float(part.scales.min()), float(part.scales.max())],
            "codes_sha256": digest(part.codes),
        }
        for part in weighted_parts(model)
    ]
    activations = [
        {
            "name": f"{linear.name}.codes",
            "bits": int(linear.qparams.quant_max).bit_length(),
            "scale": linear.qparams.scale,
            "zero_point": linear.qparams.zero_point,
            "granularity": "per tensor",
            "symmetric": False,
        }
        for linear in model.linears()
    ]
    return {"method": TRAINED, "weights": weights, "activations": activations}
