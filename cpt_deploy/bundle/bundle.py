"""Open the bundle of an image classifier: checksums first, then the version, then its parts.

Nothing is loaded from a damaged bundle.
"""

from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.bundle.formats import FORMATS
from cpt_deploy.bundle.golden import Golden, read_golden
from cpt_deploy.bundle.integrity.checksums import AGAIN_HINT, read_checksums, verify_checksums
from cpt_deploy.bundle.layout import (
    CONFIG_FILE,
    GOLDEN_FILE,
    LABELS_FILE,
    LANGUAGE_KIND,
    PREPROCESSOR_FILE,
    QUANTIZATION_FILE,
    REQUIRED_FILES,
    VALIDATION_FILE,
)
from cpt_deploy.bundle.opened import OpenedBundle, check_directory, own_section, read_file, read_json, require_listed
from cpt_deploy.bundle.processors.preprocessing import Preprocessing
from cpt_deploy.errors import BundleError


@dataclass(frozen=True, eq=False)
class Bundle(OpenedBundle):
    """An opened bundle of an image classifier.

    Args:
        path: Its directory.
        name: Name of the model, as clients address it.
        version: Version of the model, as clients address it.
        config: The content of config.json; this project's own facts are under "cpt".
        quantization: The content of quantization.json; the integer graph is under "graph".
        validation: The report of `cpt validate`, if it was run.
        digests: SHA-256 of each file by its name, hexadecimal.
        labels: Names of the classes, in the order of the logits.
        preprocessing: How an image becomes the model's input.
        golden: Inputs with the output integers, or the logits up to a tolerance, that a runtime has to reproduce.
        formats: The formats of the model in the bundle, names of `FORMATS`.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    golden: Golden
    formats: tuple[str, ...] = ("onnx", "safetensors")

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle directory.

        Args:
            path: The directory.
            verify: Whether to compare every file with its checksum first.

        Raises:
            BundleError: If it is not a bundle, a file is missing, damaged or edited, or a newer version wrote it.
        """
        directory = Path(path)
        check_directory(directory)
        digests = verify_checksums(directory) if verify else read_checksums(directory)
        config = read_json(directory, CONFIG_FILE, digests)
        own = own_section(directory, config)
        if own.get("kind") == LANGUAGE_KIND:
            raise BundleError(
                f"Expected an image classifier in {directory}, but it is a language model",
                hint=f"cpt generate {directory} TEXT; cpt serve {directory}",
            )
        for name in REQUIRED_FILES:
            require_listed(directory, name, digests)
        labels = _read_labels(directory, digests)
        golden = read_golden(read_file(directory, GOLDEN_FILE, digests))
        if golden.logits.shape[1] != len(labels):
            raise BundleError(
                f"Expected as many labels as logits ({golden.logits.shape[1]}) in {directory}, but got {len(labels)}",
                hint=AGAIN_HINT,
            )
        preprocessing = _read_preprocessing(directory, digests)
        if golden.inputs.shape[1:] != preprocessing.input_shape:
            raise BundleError(
                f"Expected inputs of shape {golden.inputs.shape[1:]}, as the golden sample has them, from the "
                f"preprocessing in {directory / PREPROCESSOR_FILE}, but it makes {preprocessing.input_shape}",
                hint=AGAIN_HINT,
            )
        return cls(
            path=directory,
            name=own["name"],
            version=own["version"],
            config=config,
            labels=labels,
            preprocessing=preprocessing,
            quantization=read_json(directory, QUANTIZATION_FILE, digests),
            validation=read_json(directory, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None,
            golden=golden,
            digests=digests,
            formats=tuple(name for name, known in FORMATS.items() if known.file in digests),
        )


def _read_labels(directory: Path, digests: dict[str, str]) -> tuple[str, ...]:
    try:
        return tuple(read_file(directory, LABELS_FILE, digests).decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise BundleError(
            f"Expected UTF-8 text in {directory / LABELS_FILE}, but got: {error}", hint=AGAIN_HINT
        ) from error


def _read_preprocessing(directory: Path, digests: dict[str, str]) -> Preprocessing:
    fields = read_json(directory, PREPROCESSOR_FILE, digests).get("cpt")
    try:
        return Preprocessing.from_dict(fields if isinstance(fields, dict) else {})
    except ValueError as error:
        raise BundleError(f"Expected a preprocessing in {directory / PREPROCESSOR_FILE}, but got: {error}") from error
