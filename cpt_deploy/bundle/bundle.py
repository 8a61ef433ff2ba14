"""Opening a bundle: checksums first, then the version, then its parts. Nothing is loaded from a damaged one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from cpt_deploy.bundle.checksums import AGAIN_HINT, read_checksums, verify_checksums
from cpt_deploy.bundle.formats import FORMATS
from cpt_deploy.bundle.golden import GoldenSample
from cpt_deploy.bundle.layout import (
    CONFIG_FILE,
    FORMAT_VERSION,
    GOLDEN_FILE,
    LABELS_FILE,
    ONNX_FILE,
    PREPROCESSOR_FILE,
    QUANTIZATION_FILE,
    REQUIRED_FILES,
    SUMS_FILE,
    TENSORS_FILE,
    VALIDATION_FILE,
)
from cpt_deploy.bundle.preprocessing import Preprocessing
from cpt_deploy.errors import BundleError


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle.

    Args:
        path: Its directory.
        name: Name of the model, as clients address it.
        version: Version of the model, as clients address it.
        config: The whole of config.json; facts of this project's own are under "cpt".
        labels: Names of the classes, in the order of the logits.
        preprocessing: How an image becomes the model's input.
        quantization: The whole of quantization.json; the integer graph is under "graph".
        validation: The report of `cpt validate`, if it was run.
        golden: Inputs with the codes that a runtime has to reproduce.
        sha256: Digest of model.onnx, hexadecimal.
        formats: The forms in which it holds the model, names of `FORMATS`.
    """

    path: Path
    name: str
    version: str
    config: dict[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    quantization: dict[str, Any]
    validation: dict[str, Any] | None
    golden: GoldenSample
    sha256: str
    formats: tuple[str, ...] = ("onnx", "safetensors")

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle directory.

        Args:
            path: The directory.
            verify: Whether to compare every file with its checksum first.

        Raises:
            BundleError: If it is no bundle, a file is missing, damaged or edited, or a newer version wrote it.
        """
        directory = Path(path)
        _check_directory(directory)
        digests = verify_checksums(directory) if verify else read_checksums(directory)
        config = _read_json(directory, CONFIG_FILE, digests)
        own = _own_section(directory, config)
        for name in REQUIRED_FILES:
            _listed(directory, name, digests)
        labels = _read_labels(directory, digests)
        golden = GoldenSample.from_bytes(_read(directory, GOLDEN_FILE, digests))
        if golden.logit_codes.shape[1] != len(labels):
            raise BundleError(
                f"Expected as many labels as logits ({golden.logit_codes.shape[1]}) in {directory}, "
                f"but got {len(labels)}",
                hint=AGAIN_HINT,
            )
        return cls(
            path=directory,
            name=own["name"],
            version=own["version"],
            config=config,
            labels=labels,
            preprocessing=_read_preprocessing(directory, digests),
            quantization=_read_json(directory, QUANTIZATION_FILE, digests),
            validation=_read_json(directory, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None,
            golden=golden,
            sha256=digests[ONNX_FILE],
            formats=tuple(name for name, known in FORMATS.items() if known.file in digests),
        )

    @property
    def onnx_path(self) -> Path:
        """Path of model.onnx."""
        return self.path / ONNX_FILE

    @property
    def calibrated(self) -> bool:
        """Whether it comes from a float model by calibration alone, not from a run of cyclic precision training."""
        return bool(self.facts.get("card", {}).get("calibrated", False))

    @property
    def facts(self) -> dict[str, Any]:
        """The project's own section of config.json: format version, name, bits and what else export recorded."""
        facts: dict[str, Any] = self.config["cpt"]
        return facts

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


def _check_directory(directory: Path) -> None:
    """Raise a `BundleError` that says what the path is, unless it looks like a bundle."""
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
    raise BundleError(f"Expected a bundle at {directory}, but it has no {SUMS_FILE}: it is no bundle", hint=how)


def _own_section(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the project's section of config.json, once its version is known to be one that can be read."""
    own = config.get("cpt")
    own = own if isinstance(own, dict) else {}
    _check_version(directory, own.get("format_version"))
    if not (isinstance(own.get("name"), str) and isinstance(own.get("version"), str)):
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to say the model's name and version, but it does not",
            hint=AGAIN_HINT,
        )
    return own


def _check_version(directory: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to say its cpt.format_version, but got {version!r}", hint=AGAIN_HINT
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"Expected a bundle of format version {FORMAT_VERSION} or older, but {directory} has version {version}",
            hint="a newer cpt-deploy wrote it: upgrade with `pip install --upgrade cpt-deploy`",
        )


def _listed(directory: Path, name: str, digests: dict[str, str]) -> None:
    """Raise unless SHA256SUMS covers the file: an unlisted one could have been put there by anybody."""
    if name not in digests:
        raise BundleError(f"Expected {SUMS_FILE} in {directory} to list {name}, but it does not", hint=AGAIN_HINT)


def _read(directory: Path, name: str, digests: dict[str, str]) -> bytes:
    _listed(directory, name, digests)
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"Expected to read {name} in {directory}, but got: {error.strerror or error}", hint=AGAIN_HINT
        ) from error


def _read_json(directory: Path, name: str, digests: dict[str, str]) -> dict[str, Any]:
    try:
        content = json.loads(_read(directory, name, digests))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"Expected JSON in {directory / name}, but got: {error}", hint=AGAIN_HINT) from error
    if not isinstance(content, dict):
        raise BundleError(
            f"Expected a JSON object in {directory / name}, but got {type(content).__name__}", hint=AGAIN_HINT
        )
    return content


def _read_labels(directory: Path, digests: dict[str, str]) -> tuple[str, ...]:
    try:
        return tuple(_read(directory, LABELS_FILE, digests).decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise BundleError(
            f"Expected UTF-8 text in {directory / LABELS_FILE}, but got: {error}", hint=AGAIN_HINT
        ) from error


def _read_preprocessing(directory: Path, digests: dict[str, str]) -> Preprocessing:
    fields = _read_json(directory, PREPROCESSOR_FILE, digests).get("cpt")
    try:
        return Preprocessing.from_dict(fields if isinstance(fields, dict) else {})
    except ValueError as error:
        raise BundleError(f"Expected a preprocessing in {directory / PREPROCESSOR_FILE}, but got: {error}") from error
