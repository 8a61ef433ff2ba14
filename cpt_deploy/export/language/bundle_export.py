"""From a trained language model to a bundle: freeze, write ONNX, take the golden sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import CardFields
from cpt_deploy.bundle.language import (
    GoldenText,
    LanguageBundle,
    LanguageContents,
    LanguageModel,
    write_language_bundle,
)
from cpt_deploy.bundle.tokenization import Tokenizer
from cpt_deploy.errors import BundleError
from cpt_deploy.export.bundle_export import TRAINED, digest
from cpt_deploy.export.golden import golden_tolerance
from cpt_deploy.export.language.graph import OPSET
from cpt_deploy.export.language.lstm_onnx import lstm_manifest, write_lstm_onnx
from cpt_deploy.freezing.language import IntegerLstm, freeze_lstm
from cpt_deploy.quantization.cycling import WeightBits
from cpt_deploy.quantization.language import QuantizedLanguageModel

GOLDEN_ROWS, GOLDEN_TOKENS = 4, 16


@dataclass(frozen=True)
class LanguageIdentity:
    """What a bundle says of its language model beside the integers.

    Args:
        name: Name of the model in the server.
        architecture: Name of the architecture.
        tokenizer: From text to tokens and back.
        facts: Further facts for config.json.
        recipe: The recipe of the run, YAML text.
        card: What the model card says beside the facts.
    """

    name: str
    architecture: str
    tokenizer: Tokenizer
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    card: CardFields = field(default_factory=CardFields)


def export_language_bundle(
    model: QuantizedLanguageModel,
    destination: Path | str,
    identity: LanguageIdentity,
    golden_text: npt.NDArray[np.integer[Any]],
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
) -> LanguageBundle:
    """Freeze a trained language model and write it as a bundle, all or nothing.

    Args:
        model: The model, settled at the bits to be exported.
        destination: Directory of the bundle; an existing bundle there is replaced.
        identity: Name, tokenizer and facts.
        golden_text: Tokens of a text, of whose beginning the exact logits are stored for self-checks.
        weight_bits: Bits of the cycling layers' weights, or of single layers by name; None is the upper bound.
        activation_bits: Bits of the cycling activations; None is the upper bound.

    Raises:
        ConversionError: If the model cannot be frozen.
        UsageError: If bits are out of range.
        BundleError: If the tokens do not fit the model, or the bundle cannot be written.
    """
    frozen = freeze_lstm(model, weight_bits=weight_bits, activation_bits=activation_bits)
    if identity.tokenizer.size != frozen.vocabulary:
        raise BundleError(
            f"Expected a vocabulary for the model's {frozen.vocabulary} tokens, but got {identity.tokenizer.size}"
        )
    facts = {
        "weight_bits": weight_bits if isinstance(weight_bits, int) else model.precision.upper,
        "activation_bits": activation_bits or model.precision.upper,
        "quantization": TRAINED,
        "cycle": [model.config.lower, model.config.upper],
        "opset": OPSET,
        **identity.facts,
    }
    metadata = {
        "cpt.name": identity.name,
        "cpt.weight_bits": str(facts["weight_bits"]),
        "cpt.activation_bits": str(facts["activation_bits"]),
        "task": "generate",
    }
    onnx = write_lstm_onnx(frozen, metadata=metadata)
    contents = LanguageContents(
        name=identity.name,
        onnx=onnx,
        manifest=lstm_manifest(frozen),
        tokenizer=identity.tokenizer,
        golden=golden_tokens(frozen, onnx, golden_text),
        tensors=frozen.arrays(),
        quantization=describe_language_quantization(frozen),
        architecture=identity.architecture,
        facts=facts,
        recipe=identity.recipe,
        card=identity.card,
    )
    return write_language_bundle(destination, contents=contents)


def golden_tokens(model: IntegerLstm, onnx: bytes, text: npt.NDArray[np.integer[Any]]) -> GoldenText:
    """Return the first tokens of a text with the executor's logits, and by how much onnxruntime may differ.

    Raises:
        BundleError: If the text has no token.
    """
    if len(text) == 0:
        raise BundleError("Expected a text for the golden sample, but got an empty one")
    count = min(GOLDEN_TOKENS, len(text))
    rows = max(1, min(GOLDEN_ROWS, len(text) // count))
    tokens = np.ascontiguousarray(text[: rows * count], np.int64).reshape(rows, count)
    logits = np.ascontiguousarray(model.run(tokens)[0][:, -1])
    served = LanguageModel(onnx, lstm_manifest(model)).run(tokens)[0][:, -1]
    return GoldenText(tokens, logits, golden_tolerance(logits, served))


def describe_language_quantization(model: IntegerLstm) -> dict[str, Any]:
    """Return what `quantization.json` says of each weight and each input of a product, with a digest of the codes."""
    weights = [
        {
            "layer": name,
            "shape": list(codes.shape),
            "granularity": "per row" if name == model.table.name else "per output channel",
            "symmetric": True,
            "greatest_code": int(np.abs(codes.astype(np.int16)).max(initial=0)),
            "scale_range": [float(scales.min()), float(scales.max())],
            "codes_sha256": digest(codes),
        }
        for name, codes, scales in [
            (model.table.name, model.table.codes, model.table.scales),
            *((linear.name, linear.codes, linear.scales) for linear in model.linears()),
        ]
    ]
    activations = [
        {
            "name": f"{linear.name}.codes",
            "bits": int(linear.grid.levels).bit_length(),
            "scale": linear.grid.scale,
            "zero_point": linear.grid.zero_point,
            "granularity": "per tensor",
            "symmetric": False,
        }
        for linear in model.linears()
    ]
    return {"method": TRAINED, "weights": weights, "activations": activations, "graph": model.describe()}
