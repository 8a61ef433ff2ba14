"""The common parts of all kinds of bundles: a directory with valid checksums, a name, a version, and model.onnx."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from cpt_deploy.bundle.integrity.checksums import AGAIN_HINT, content_digest
from cpt_deploy.bundle.layout import CONFIG_FILE, FLOAT_PARTS, FORMAT_VERSION, ONNX_FILE, SUMS_FILE, TENSORS_FILE
from cpt_deploy.errors import BundleError


@dataclass(frozen=True, eq=False)
class OpenedBundle:
    """An opened bundle of any kind.

    Args:
        path: Its directory.
        name: Name of the model, as clients address it.
        version: Version of the model, as clients address it.
        config: The content of config.json; this project's own facts are under "cpt".
        quantization: The content of quantization.json.
        validation: The report of `cpt validate`, if it was run.
        digests: SHA-256 of each file by its name, hexadecimal, from SHA256SUMS and verified at opening.
    """

    path: Path
    name: str
    version: str
    config: dict[str, Any]
    quantization: dict[str, Any]
    validation: dict[str, Any] | None
    digests: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Digest of model.onnx, hexadecimal."""
        return self.digests[ONNX_FILE]

    @property
    def content_sha256(self) -> str:
        """One digest of every file that changes an answer; see `content_digest`."""
        return content_digest(self.digests)

    @property
    def onnx_path(self) -> Path:
        """Path of model.onnx."""
        return self.path / ONNX_FILE

    @property
    def calibrated(self) -> bool:
        """Whether it comes from a float model by calibration only, not from a run of cyclic precision training."""
        return bool(self.facts.get("card", {}).get("calibrated", False))

    @property
    def facts(self) -> dict[str, Any]:
        """The project's own section of config.json: format version, name, bits and further facts from export."""
        facts: dict[str, Any] = self.config["cpt"]
        return facts

    @property
    def float_parts(self) -> dict[str, Any] | None:
        """The entry of quantization.json on operators in float between the layers; `None` if there are none."""
        found: dict[str, Any] | None = self.quantization.get(FLOAT_PARTS)
        return found

    def load_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Load the integer weights, biases and scales of model.safetensors by name.

        Raises:
            BundleError: If the file cannot be read.
        """
        try:
            tensors: dict[str, npt.NDArray[Any]] = load((self.path / TENSORS_FILE).read_bytes())
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"Expected tensors in {self.path / TENSORS_FILE}, but got: {error}", hint=AGAIN_HINT
            ) from error
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def check_directory(directory: Path) -> None:
    """Raise a `BundleError` that describes the path, unless it looks like a bundle."""
    how = "`cpt export RUN` writes a bundle"
    if not directory.exists():
        raise BundleError(f"Expected a bundle at {directory}, but there is nothing", hint=how)
    if not directory.is_dir():
        raise BundleError(f"Expected a bundle directory at {directory}, but it is a file", hint=how)
    if (directory / SUMS_FILE).is_file():
        return
    if (directory / "recipe.yaml").is_file():
        raise BundleError(
            f"Expected a bundle at {directory}, but it is the directory of a training run",
            hint=f"export it first: cpt export {directory}",
        )
    if (directory / CONFIG_FILE).is_file() and (directory / ONNX_FILE).is_file():
        raise BundleError(f"Expected the file {SUMS_FILE} in {directory}, but it is missing", hint=AGAIN_HINT)
    raise BundleError(f"Expected a bundle at {directory}, but it has no {SUMS_FILE}: it is not a bundle", hint=how)


def bundle_kind(directory: Path) -> str | None:
    """Return what a bundle says that it holds; classifiers, and what cannot be read, say nothing.

    Only who opens it depends on this: what it says counts after its checksum was verified.
    """
    try:
        check_directory(directory)
        config = read_json(directory, CONFIG_FILE, {CONFIG_FILE: ""})
    except BundleError:
        return None
    own = config.get("cpt")
    kind = own.get("kind") if isinstance(own, dict) else None
    return kind if isinstance(kind, str) else None


def own_section(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the project's section of config.json, after checking that its format version can be read."""
    own = config.get("cpt")
    own = own if isinstance(own, dict) else {}
    _check_version(directory, own.get("format_version"))
    if not (isinstance(own.get("name"), str) and isinstance(own.get("version"), str)):
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to have the model's name and version, but it does not",
            hint=AGAIN_HINT,
        )
    return own


def _check_version(directory: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to have its cpt.format_version, but got {version!r}", hint=AGAIN_HINT
        )
    if version != FORMAT_VERSION:
        newer = "a newer cpt-deploy wrote it: upgrade with `pip install --upgrade cpt-deploy`"
        raise BundleError(
            f"Expected a bundle of format version {FORMAT_VERSION}, but {directory} has version {version}",
            hint=newer if version > FORMAT_VERSION else "an older cpt-deploy wrote it: train and export again",
        )


def require_listed(directory: Path, name: str, digests: Mapping[str, str]) -> None:
    """Raise unless SHA256SUMS lists the file: anyone could have added an unlisted file."""
    if name not in digests:
        raise BundleError(f"Expected {SUMS_FILE} in {directory} to list {name}, but it does not", hint=AGAIN_HINT)


def read_file(directory: Path, name: str, digests: Mapping[str, str]) -> bytes:
    """Return the content of a file that SHA256SUMS lists.

    Raises:
        BundleError: If the file is not listed or cannot be read.
    """
    require_listed(directory, name, digests)
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"Expected to read {name} in {directory}, but got: {error.strerror or error}", hint=AGAIN_HINT
        ) from error


def read_json(directory: Path, name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object in a file that SHA256SUMS lists.

    Raises:
        BundleError: If the file is not listed, cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(read_file(directory, name, digests))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"Expected JSON in {directory / name}, but got: {error}", hint=AGAIN_HINT) from error
    if not isinstance(content, dict):
        raise BundleError(
            f"Expected a JSON object in {directory / name}, but got {type(content).__name__}", hint=AGAIN_HINT
        )
    return content
