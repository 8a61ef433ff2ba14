"""Write a bundle, or add a validation report to one, atomically."""

import hashlib
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
from cpt_deploy.bundle.bundle import Bundle, check_parts
from cpt_deploy.bundle.card import CardFields, EvaluationResult, render_card
from cpt_deploy.bundle.checksums import checksum_lines, read_checksums
from cpt_deploy.bundle.directories import locked, replace_directory, replace_files
from cpt_deploy.bundle.formats import FORMATS
from cpt_deploy.bundle.formatting import json_bytes
from cpt_deploy.bundle.golden import Golden
from cpt_deploy.bundle.processors.by_task import check_processor
from cpt_deploy.bundle.processors.processor import Processor
from cpt_deploy.errors import BundleError
from cpt_deploy.signature import Signature, to_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNSHOWN = frozenset({"format_version", "name", "task", "processor"})
"""Entries of config.json's section "cpt" that the table of the model card does not repeat."""


@dataclass(frozen=True, eq=False)
class BundleContents:
    """The complete contents of a bundle.

    Args:
        name: Name of the model: letters, digits, ".", "_" and "-", since it is part of URLs.
        task: Its task, e.g. "image-classification".
        signature: Inputs, outputs and states of model.onnx.
        processor: Converts requests to inputs and outputs to answers.
        onnx: The serialized model.onnx.
        tensors: Integer weights, biases and scales by name, for model.safetensors.
        graph: The integer graph as JSON types, stored in quantization.json under "graph".
        quantization: The quantization parameters of each tensor, as JSON types.
        golden: Inputs with the integer executor's outputs.
        architecture: Name of the architecture, as timm or this project knows it.
        version: Version of the model, as clients address it.
        facts: Further facts as JSON types (bits, data set, digest of the trained weights, ...); they go into the
            "cpt" section of config.json, and those that are numbers or text into the model card too.
        recipe: The recipe of the training run, as YAML text.
        card: The author's part of the model card.
        formats: Content of the model's further files, by the name of their format in `FORMATS`.
    """

    name: str
    task: str
    signature: Signature
    processor: Processor
    onnx: bytes
    tensors: Mapping[str, npt.NDArray[Any]]
    graph: Mapping[str, Any]
    quantization: Mapping[str, Any]
    golden: Golden
    architecture: str
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    card: CardFields = field(default_factory=CardFields)
    formats: Mapping[str, bytes] = field(default_factory=dict)


def write_bundle(destination: str | Path, *, contents: BundleContents) -> Bundle:
    """Write a bundle and open it.

    The same contents give the same bytes. An existing bundle is replaced; any other destination is refused.

    Args:
        destination: The directory to write.
        contents: The contents of the bundle.

    Raises:
        BundleError: If a name is invalid, signature, processor and golden sample do not fit each other, the destination
            exists and is not a bundle, or it cannot be written (a full disk); nothing is left behind then.
        ValueError: If facts or quantization have keys that the bundle writes itself.
    """
    directory = Path(destination)
    _check_contents(contents)
    check_replaceable(directory)
    config = _config(contents)
    parts: dict[str, bytes] = {
        layout.ONNX_FILE: contents.onnx,
        layout.TENSORS_FILE: save(
            {name: np.asarray(tensor, order="C") for name, tensor in contents.tensors.items()}, {"format": "pt"}
        ),
        layout.CONFIG_FILE: json_bytes(config),
        layout.QUANTIZATION_FILE: json_bytes({**contents.quantization, "graph": contents.graph}),
        layout.GOLDEN_FILE: contents.golden.to_bytes(),
        layout.CARD_FILE: _card(
            config, contents.signature, contents.processor, (), onnx_bytes=len(contents.onnx)
        ).encode(),
    }
    parts |= {FORMATS[name].file: content for name, content in contents.formats.items()}
    if contents.recipe is not None:
        parts[layout.RECIPE_FILE] = contents.recipe.encode()
    files = contents.processor.files()
    if parts.keys() & files.keys():
        raise ValueError(f"Expected a processor's files besides {', '.join(parts)}, but got {', '.join(files)}")
    parts |= files
    with _writing(directory):
        replace_directory(directory, {**parts, layout.SUMS_FILE: checksum_lines(_digests_of(parts)).encode()})
    return Bundle.open(directory)


def update_validation(
    bundle: Bundle, report: Mapping[str, Any], results: Sequence[EvaluationResult] = (), *, page: str | None = None
) -> Bundle:
    """Store a validation report in a bundle and update its model card and checksums, atomically.

    A signature is removed, since it does not cover the new report.

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
    directory = bundle.path
    changed = {layout.VALIDATION_FILE: json_bytes(report)}
    if results:
        size = bundle.onnx_path.stat().st_size
        changed[layout.CARD_FILE] = _card(
            bundle.config, bundle.signature, bundle.processor, results, onnx_bytes=size
        ).encode()
    if page is not None:
        changed[layout.VALIDATION_PAGE] = page.encode()
    left = {layout.SIGNATURE_FILE, *([layout.VALIDATION_PAGE] if page is None else [])}
    with _writing(directory), locked(directory, to_write=True):
        digests = read_checksums(directory) | _digests_of(changed)
        if page is None:
            digests.pop(layout.VALIDATION_PAGE, None)
        # With both lists of checksums in place, the bundle can be opened even if this is interrupted.
        replace_files(directory, {layout.PENDING_SUMS_FILE: checksum_lines(digests).encode(), **changed})
        (directory / layout.PENDING_SUMS_FILE).replace(directory / layout.SUMS_FILE)
        for name in left:
            (directory / name).unlink(missing_ok=True)
    return Bundle.open(directory)


def _check_contents(contents: BundleContents) -> None:
    for kind, value in (("name", contents.name), ("version", contents.version)):
        if not _NAME.fullmatch(value):
            raise BundleError(
                f"Expected a bundle's {kind} of letters, digits, '.', '_' and '-' (at most 128), but got {value!r}",
                hint="it is part of the server's URLs",
            )
    check_processor(contents.task, type(contents.processor).__name__)
    try:
        check_parts(contents.signature, contents.processor, contents.golden)
    except ValueError as error:
        raise BundleError(str(error)) from error
    own = {"format_version", "name", "version", "task", "signature", "processor", "card", *contents.processor.facts()}
    taken = own & set(contents.facts)
    if taken or "graph" in contents.quantization:
        raise ValueError(
            f"Expected facts and quantization without keys of the bundle's own, but got {taken or 'graph'}"
        )


def check_replaceable(directory: Path) -> None:
    """Raise if the destination has any file that is not a bundle's, since it would be deleted."""
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise BundleError(f"Expected a directory for the bundle, but {directory} is a file", hint="choose another name")
    found = {entry.name for entry in directory.iterdir()}
    own: set[str] = set()
    if layout.SUMS_FILE in found:
        own = {*read_checksums(directory), layout.SUMS_FILE, layout.PENDING_SUMS_FILE, layout.SIGNATURE_FILE}
    foreign = sorted(found - own)
    if foreign:
        raise BundleError(
            f"Expected {directory} to be free or a bundle, but it holds {', '.join(foreign[:3])}",
            hint="choose another name, or move them",
        )


def _config(contents: BundleContents) -> dict[str, Any]:
    """Return config.json: the processor's keys for other readers, and the project's own section."""
    card = {key: value for key, value in asdict(contents.card).items() if value}
    return {
        "architecture": contents.architecture,
        **contents.processor.config(),
        "cpt": {
            "format_version": layout.FORMAT_VERSION,
            "name": contents.name,
            "version": contents.version,
            "task": contents.task,
            "signature": to_json(contents.signature),
            "processor": type(contents.processor).__name__,
            **contents.processor.facts(),
            **contents.facts,
            "card": card,
        },
    }


def _card(
    config: Mapping[str, Any],
    signature: Signature,
    processor: Processor,
    results: Sequence[EvaluationResult],
    *,
    onnx_bytes: int,
) -> str:
    """Return the model card of a bundle with a config.json."""
    own = dict(config["cpt"])
    card = dict(own.pop("card", {}))
    facts = {"architecture": config["architecture"], "size of model.onnx": f"{onnx_bytes:,} bytes"} | {
        key: value for key, value in own.items() if isinstance(value, (str, int, float)) and key not in _UNSHOWN
    }
    return render_card(
        own["name"],
        own["task"],
        CardFields(**card | {"tags": tuple(card.get("tags", ()))}),
        facts=facts,
        signature=signature,
        text=processor.card(signature),
        results=results,
    )


def _digests_of(parts: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file's content, hexadecimal."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Convert an `OSError` while writing to a `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"Expected to write the bundle {directory}, but got: {error.strerror or error}",
            hint="nothing was changed; free some space, or choose a writable place",
        ) from error
