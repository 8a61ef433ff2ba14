"""Write a bundle, or add a validation report to one, atomically."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from cpt_deploy.bundle import layout
from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.card import CardFields, EvaluationResult, render_card
from cpt_deploy.bundle.formats import FORMATS
from cpt_deploy.bundle.golden import Golden
from cpt_deploy.bundle.integrity.checksums import checksum_lines, read_checksums
from cpt_deploy.bundle.integrity.directories import replace_directory, replace_files
from cpt_deploy.bundle.processors.descriptions import described_ends, described_preprocessing
from cpt_deploy.bundle.processors.preprocessing import Preprocessing
from cpt_deploy.errors import BundleError

_NUMBERS = re.compile(r"\[\n\s+((?:[-+.\deE]+,\n\s+)*[-+.\deE]+)\n\s*\]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, eq=False)
class BundleContents:
    """The complete contents of a bundle.

    Args:
        name: Name of the model: letters, digits, ".", "_" and "-", since it is part of URLs.
        onnx: The serialized model.onnx; its input is "image", its output "logits".
        tensors: Integer weights, biases and scales by name, for model.safetensors.
        graph: The integer graph as JSON types, stored in quantization.json under "graph".
        quantization: The quantization parameters of each tensor, as JSON types.
        labels: Names of the classes, one line each.
        preprocessing: How an image becomes the model's input.
        golden: Inputs with the integer executor's output integers, or its logits if parts are computed in float.
        architecture: Name of the architecture, as timm or this project knows it.
        version: Version of the model, as clients address it.
        facts: Further facts as JSON types (bits, data set, digest of the trained weights, ...); they go into the
            "cpt" section of config.json, and those that are numbers or text into the model card too.
        recipe: The recipe of the training run, as YAML text.
        card: The author's part of the model card.
        results: Figures measured before export, for the model card.
        formats: Content of the model's further files, by the name of their format in `FORMATS`.
    """

    name: str
    onnx: bytes
    tensors: Mapping[str, npt.NDArray[Any]]
    graph: Mapping[str, Any]
    quantization: Mapping[str, Any]
    labels: Sequence[str]
    preprocessing: Preprocessing
    golden: Golden
    architecture: str
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    card: CardFields = field(default_factory=CardFields)
    results: Sequence[EvaluationResult] = ()
    formats: Mapping[str, bytes] = field(default_factory=dict)


def write_bundle(destination: str | Path, *, contents: BundleContents) -> Bundle:
    """Write a bundle and open it.

    The same contents give the same bytes. An existing bundle is replaced; any other destination is refused.

    Args:
        destination: The directory to write.
        contents: The contents of the bundle.

    Raises:
        BundleError: If a name or the labels are invalid, the destination exists and is not a bundle, or it cannot be
            written (a full disk); nothing is left behind then.
        ValueError: If facts or quantization have keys that the bundle writes itself.
    """
    directory = Path(destination)
    _check_contents(contents)
    check_replaceable(directory)
    config = _config(contents)
    parts: dict[str, bytes] = {
        layout.ONNX_FILE: contents.onnx,
        layout.TENSORS_FILE: tensor_bytes(contents.tensors),
        layout.CONFIG_FILE: json_bytes(config),
        layout.PREPROCESSOR_FILE: json_bytes(described_preprocessing(contents.preprocessing)),
        layout.LABELS_FILE: "".join(f"{label}\n" for label in contents.labels).encode(),
        layout.QUANTIZATION_FILE: json_bytes({**contents.quantization, "graph": contents.graph}),
        layout.GOLDEN_FILE: contents.golden.to_bytes(),
        layout.CARD_FILE: _card(
            config, contents.labels, contents.preprocessing, contents.results, onnx_bytes=len(contents.onnx)
        ).encode(),
    }
    parts |= {FORMATS[name].file: content for name, content in contents.formats.items()}
    if contents.recipe is not None:
        parts[layout.RECIPE_FILE] = contents.recipe.encode()
    write_parts(directory, parts)
    return Bundle.open(directory)


def update_validation(
    bundle: Bundle, report: Mapping[str, Any], results: Sequence[EvaluationResult] = (), *, page: str | None = None
) -> Bundle:
    """Store a validation report in a bundle and update its model card and checksums, atomically.

    Args:
        bundle: The bundle; the object itself is not changed.
        report: The report as JSON types; it becomes validation.json.
        results: The measured figures; they become the model card's table and model index. Without any, the card is
            not changed.
        page: The report as HTML; it becomes validation.html. Without one, the page of an earlier report is removed.

    Returns:
        The bundle, opened again.

    Raises:
        BundleError: If the bundle cannot be written; it is unchanged then.
    """
    card = None
    if results:
        card = _card(
            bundle.config, bundle.labels, bundle.preprocessing, results, onnx_bytes=bundle.onnx_path.stat().st_size
        )
    store_validation(bundle.path, report, card=card, page=page)
    return Bundle.open(bundle.path)


def store_validation(
    directory: Path, report: Mapping[str, Any], *, card: str | None = None, page: str | None = None
) -> None:
    """Write a validation report, model card and page into the directory of a bundle of any kind, atomically.

    A signature is removed, since it does not cover the new report.

    Args:
        directory: The bundle.
        report: The report as JSON types.
        card: The new model card; None keeps the present one.
        page: The report as HTML; if None, the page of an earlier report is removed.

    Raises:
        BundleError: If the bundle cannot be written; it is unchanged then.
    """
    changed = {layout.VALIDATION_FILE: json_bytes(report)}
    if card is not None:
        changed[layout.CARD_FILE] = card.encode()
    if page is not None:
        changed[layout.VALIDATION_PAGE] = page.encode()
    digests = read_checksums(directory) | digests_of(changed)
    if page is None:
        digests.pop(layout.VALIDATION_PAGE, None)
    left = {layout.SIGNATURE_FILE, *([layout.VALIDATION_PAGE] if page is None else [])}
    sums = checksum_lines(digests).encode()
    with writing(directory):
        # With both lists of checksums in place, the bundle can be opened even if this is interrupted.
        replace_files(directory, {layout.PENDING_SUMS_FILE: sums, **changed})
        (directory / layout.PENDING_SUMS_FILE).replace(directory / layout.SUMS_FILE)
        for name in left:
            (directory / name).unlink(missing_ok=True)


def _check_contents(contents: BundleContents) -> None:
    check_names(contents.name, contents.version)
    labels = list(contents.labels)
    if any(not label or label.splitlines() != [label] for label in labels) or len(set(labels)) != len(labels):
        raise BundleError(f"Expected labels to be different, non-empty single lines, but got {labels[:10]}")
    if len(labels) != contents.golden.logits.shape[1]:
        raise BundleError(
            f"Expected a label for each of the {contents.golden.logits.shape[1]} logits, but got {len(labels)}"
        )
    if contents.golden.inputs.shape[1:] != contents.preprocessing.input_shape:
        raise BundleError(
            f"Expected golden inputs of shape (N, {', '.join(map(str, contents.preprocessing.input_shape))}), "
            f"but got {contents.golden.inputs.shape}"
        )
    taken = {"format_version", "name", "version", "card", layout.INPUTS} & set(contents.facts)
    if taken or "graph" in contents.quantization:
        raise ValueError(
            f"Expected facts and quantization without keys of the bundle's own, but got {taken or 'graph'}"
        )


def check_names(name: str, version: str) -> None:
    """Raise a `BundleError` unless a model's name and version can be part of URLs."""
    for kind, value in (("name", name), ("version", version)):
        if not _NAME.fullmatch(value):
            raise BundleError(
                f"Expected a bundle's {kind} of letters, digits, '.', '_' and '-' (at most 128), but got {value!r}",
                hint="it is part of the server's URLs",
            )


def check_replaceable(directory: Path) -> None:
    """Raise if the destination has any file that is not a bundle's, since it would be deleted."""
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise BundleError(f"Expected a directory for the bundle, but {directory} is a file", hint="choose another name")
    found = {entry.name for entry in directory.iterdir()}
    foreign = sorted(found - {*layout.REQUIRED_FILES, *layout.OPTIONAL_FILES})
    if not foreign and (not found or layout.SUMS_FILE in found):
        return
    raise BundleError(
        f"Expected {directory} to be free or a bundle, but it holds {', '.join(foreign[:3] or sorted(found)[:3])}",
        hint="choose another name, or move them",
    )


def _config(contents: BundleContents) -> dict[str, Any]:
    """Return config.json: the keys of timm, the label maps of transformers and the project's own section."""
    labels = contents.labels
    card = {key: value for key, value in asdict(contents.card).items() if value}
    return {
        "architecture": contents.architecture,
        **described_ends(labels, contents.preprocessing),
        "cpt": {
            "format_version": layout.FORMAT_VERSION,
            "name": contents.name,
            "version": contents.version,
            layout.INPUTS: contents.preprocessing.to_dict(),
            **contents.facts,
            "card": card,
        },
    }


def _card(
    config: Mapping[str, Any],
    labels: Sequence[str],
    preprocessing: Preprocessing,
    results: Sequence[EvaluationResult],
    *,
    onnx_bytes: int,
) -> str:
    fields, facts = card_facts(config, onnx_bytes)
    return render_card(
        config["cpt"]["name"], fields, facts=facts, labels=labels, preprocessing=preprocessing, results=results
    )


def card_facts(config: Mapping[str, Any], onnx_bytes: int) -> tuple[CardFields, dict[str, Any]]:
    """Return the author's part and the facts of a model card, from config.json of a bundle of any kind."""
    own = dict(config["cpt"])
    card = dict(own.pop("card", {}))
    fields = CardFields(**card | {"tags": tuple(card.get("tags", ()))})
    facts = {"architecture": config["architecture"], "size of model.onnx": f"{onnx_bytes:,} bytes"} | {
        key: value
        for key, value in own.items()
        if isinstance(value, (str, int, float)) and key not in {"format_version", "kind", "name"}
    }
    return fields, facts


def tensor_bytes(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the content of model.safetensors."""
    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, {"format": "pt"})


def write_parts(directory: Path, parts: Mapping[str, bytes]) -> None:
    """Write the files of a bundle of any kind and their checksums, replacing an existing bundle.

    Raises:
        BundleError: If they cannot be written; nothing is changed then.
    """
    with writing(directory):
        replace_directory(directory, {**parts, layout.SUMS_FILE: checksum_lines(digests_of(parts)).encode()})


def digests_of(parts: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file's content, hexadecimal."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Convert an `OSError` while writing to a `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"Expected to write the bundle {directory}, but got: {error.strerror or error}",
            hint="nothing was changed; free some space, or choose a writable place",
        ) from error


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return JSON that is formatted for people."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # Put lists of numbers on one line. A string cannot match, since its line breaks are escaped.
    lines = _NUMBERS.sub(lambda found: f"[{' '.join(found.group(1).split())}]", text)
    return f"{lines}\n".encode()
