"""Write the bundle of a language model, or add a validation report to one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cpt_deploy.bundle import layout
from cpt_deploy.bundle.card import CardFields, EvaluationResult
from cpt_deploy.bundle.language.bundle import LanguageBundle
from cpt_deploy.bundle.language.card import render_language_card
from cpt_deploy.bundle.language.golden import GoldenText
from cpt_deploy.bundle.language.manifest import LanguageManifest
from cpt_deploy.bundle.processors.tokenization import Tokenizer
from cpt_deploy.bundle.writing import (
    card_facts,
    check_names,
    check_replaceable,
    json_bytes,
    store_validation,
    tensor_bytes,
    write_parts,
)


@dataclass(frozen=True, eq=False)
class LanguageContents:
    """The complete contents of a language model's bundle.

    Args:
        name: Name of the model: letters, digits, ".", "_" and "-", since it is part of URLs.
        onnx: The serialized model.onnx, with the inputs and outputs of the manifest.
        manifest: Description of its inputs and outputs.
        tokenizer: The tokenizer.
        golden: Tokens with the logits of the exact integer arithmetic.
        tensors: Integer weights, scales and similar tensors by name, for model.safetensors.
        quantization: The quantization parameters of each tensor, as JSON types.
        architecture: Name of the architecture.
        version: Version of the model, as clients address it.
        facts: Further facts as JSON types; they go into the "cpt" section of config.json, and those that are numbers
            or text into the model card too.
        recipe: The recipe of the training run, as YAML text.
        card: The author's part of the model card.
    """

    name: str
    onnx: bytes
    manifest: LanguageManifest
    tokenizer: Tokenizer
    golden: GoldenText
    tensors: Mapping[str, npt.NDArray[Any]]
    quantization: Mapping[str, Any]
    architecture: str
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    card: CardFields = field(default_factory=CardFields)


def write_language_bundle(destination: str | Path, *, contents: LanguageContents) -> LanguageBundle:
    """Write the bundle of a language model and open it.

    The same contents give the same bytes. An existing bundle is replaced; any other destination is refused.

    Args:
        destination: The directory to write.
        contents: The contents of the bundle.

    Raises:
        BundleError: If the name is invalid, the parts are inconsistent, the destination exists and is not a bundle, or
            it cannot be written.
    """
    directory = Path(destination)
    check_names(contents.name, contents.version)
    check_replaceable(directory)
    config = _config(contents)
    parts: dict[str, bytes] = {
        layout.ONNX_FILE: contents.onnx,
        layout.TENSORS_FILE: tensor_bytes(contents.tensors),
        layout.CONFIG_FILE: json_bytes(config),
        layout.QUANTIZATION_FILE: json_bytes(contents.quantization),
        layout.GOLDEN_FILE: contents.golden.to_bytes(),
        layout.TOKENIZER_FILE: contents.tokenizer.to_json().encode(),
        layout.CARD_FILE: _card(config, contents.manifest, (), onnx_bytes=len(contents.onnx)).encode(),
    }
    if contents.recipe is not None:
        parts[layout.RECIPE_FILE] = contents.recipe.encode()
    write_parts(directory, parts)
    return LanguageBundle.open(directory)


def update_language_validation(
    bundle: LanguageBundle, report: Mapping[str, Any], results: Sequence[EvaluationResult] = ()
) -> LanguageBundle:
    """Store a validation report in a bundle and update its model card and checksums, atomically.

    Args:
        bundle: The bundle; the object itself is not changed.
        report: The report as JSON types; it becomes validation.json.
        results: The measured figures; without any, the card is not changed.

    Returns:
        The bundle, opened again.

    Raises:
        BundleError: If the bundle cannot be written; it is unchanged then.
    """
    card = None
    if results:
        card = _card(bundle.config, bundle.manifest, results, onnx_bytes=bundle.onnx_path.stat().st_size)
    store_validation(bundle.path, report, card=card)
    return LanguageBundle.open(bundle.path)


def _config(contents: LanguageContents) -> dict[str, Any]:
    card = {key: value for key, value in asdict(contents.card).items() if value}
    return {
        "architecture": contents.architecture,
        "vocab_size": contents.manifest.vocabulary,
        "cpt": {
            "format_version": layout.FORMAT_VERSION,
            "kind": layout.LANGUAGE_KIND,
            "name": contents.name,
            "version": contents.version,
            **contents.facts,
            "tokens": contents.tokenizer.level,
            "tokenizer_sha256": hashlib.sha256(contents.tokenizer.to_json().encode()).hexdigest(),
            "language": contents.manifest.to_dict(),
            "card": card,
        },
    }


def _card(
    config: Mapping[str, Any], manifest: LanguageManifest, results: Sequence[EvaluationResult], *, onnx_bytes: int
) -> str:
    fields, facts = card_facts(config, onnx_bytes)
    return render_language_card(config["cpt"]["name"], fields, facts=facts, manifest=manifest, results=results)
