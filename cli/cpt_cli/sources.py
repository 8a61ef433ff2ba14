"""From a calibrated bundle back to the float model that it was made from: what it is measured against."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cpt_cli import formats
from cpt_deploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from cpt_deploy.bundle import Bundle
    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.validation import Reference

SOURCE_FILE, SOURCE_DIGEST, SOURCE_MODEL = "source_file", "source_sha256", "source_model"
"""The facts in a bundle's config.json that name the file it was made from, and the model that weights belong to."""


def source_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_source(bundle: "Bundle", given: Path | None = None) -> Path | None:
    """Return the file that a calibrated bundle was made from: the given one, or one in a folder around the bundle.

    A bundle whose model is named by an import path needs the file to be given.

    Raises:
        UsageError: If the given file is another.
    """
    digest, name = bundle.facts.get(SOURCE_DIGEST), bundle.facts.get(SOURCE_FILE)
    if given is not None:
        if not given.is_file() or source_digest(given) != digest:
            raise UsageError(
                f"Expected the float model that {formats.path(bundle.path)} was made from, but {formats.path(given)} "
                f"{'is another file' if given.is_file() else 'does not exist'}",
                hint=f"its name was {name}" if name else "the bundle was exported from a run: see --run",
            )
        return given
    if digest is None or not isinstance(name, str) or Path(name).name != name:
        return None
    if ":" in str(bundle.facts.get(SOURCE_MODEL, "")):
        return None  # an import path runs code: only where the user names the file, not because a bundle says so
    candidates = [folder / name for folder in bundle.path.resolve().parents]
    return next((path for path in candidates if path.is_file() and source_digest(path) == digest), None)


def source_network(bundle: "Bundle", path: Path) -> "nn.Module":
    """Return the float model of a calibrated bundle, in evaluation mode.

    Raises:
        CptError: As `open_source` and `SourceModel.build` do.
    """
    from cpt_deploy.models.imported import open_source

    opened = open_source(path, bundle.facts.get(SOURCE_MODEL))
    return opened.build(bundle.preprocessing.input_shape, len(bundle.labels))


def source_reference(bundle: "Bundle", path: Path) -> "Reference":
    """Return the float model of a calibrated bundle, with the preprocessing and the labels that export was given.

    The file of a float model says nothing of them, so config.json does, where export recorded them.

    Raises:
        BundleError: If config.json does not.
        CptError: As `source_network` does.
    """
    import torch

    from cpt_deploy.bundle.integrity.consistency import exported_labels, exported_preprocessing
    from cpt_deploy.validation import Reference

    preprocessing = exported_preprocessing(bundle)
    if preprocessing is None:
        raise BundleError(
            f"Expected config.json of {formats.path(bundle.path)} to say how images became inputs, but it does not",
            hint="export the bundle again",
        )
    network = source_network(bundle, path)

    def forward(inputs: Any) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(inputs)).numpy()

    return Reference(forward, preprocessing, exported_labels(bundle), "config.json, as it was exported")


def source_as_prepared(bundle: "Bundle", path: Path) -> "QuantizedModel":
    """Return the float model of a calibrated bundle as `prepare` converts it, without ranges."""
    from cpt_deploy.quantization import QuantizationConfig, prepare

    return prepare(
        source_network(bundle, path), torch.zeros(2, *bundle.preprocessing.input_shape), QuantizationConfig()
    ).eval()
