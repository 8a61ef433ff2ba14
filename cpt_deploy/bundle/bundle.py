"""Open a bundle: checksums first, then the format version, then its parts. Nothing is loaded from a damaged bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from cpt_deploy.bundle.checksums import AGAIN_HINT, content_digest, read_checksums, verify_checksums
from cpt_deploy.bundle.directories import locked
from cpt_deploy.bundle.formats import FORMATS
from cpt_deploy.bundle.golden import Golden, read_golden
from cpt_deploy.bundle.layout import (
    CONFIG_FILE,
    FLOAT_PARTS,
    GOLDEN_FILE,
    ONNX_FILE,
    QUANTIZATION_FILE,
    REQUIRED_FILES,
    TENSORS_FILE,
    VALIDATION_FILE,
)
from cpt_deploy.bundle.processors.by_task import read_processor
from cpt_deploy.bundle.processors.processor import Processor
from cpt_deploy.bundle.reading import check_directory, own_section, read_file, read_json, require_listed
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.errors import BundleError
from cpt_deploy.signature import Signature, from_json

P = TypeVar("P", bound=Processor)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle.

    Args:
        path: Its directory.
        name: Name of the model, as clients address it.
        version: Version of the model, as clients address it.
        task: The task of the model, e.g. "image-classification".
        config: The content of config.json; this project's own facts are under "cpt".
        signature: Inputs, outputs and states of model.onnx.
        processor: Converts requests to inputs and outputs to answers.
        golden: Inputs with the outputs that a runtime has to reproduce.
        quantization: The content of quantization.json; the integer graph is under "graph".
        validation: The report of `cpt validate`, if it was run.
        digests: SHA-256 of each file by its name, hexadecimal, from SHA256SUMS and verified at opening.
        formats: The formats of the model in the bundle, names of `FORMATS`.
        bare: Whether there is no bundle but only an ONNX file, whose path is `path`.
    """

    path: Path
    name: str
    version: str
    task: str
    config: dict[str, Any]
    signature: Signature
    processor: Processor
    golden: Golden
    quantization: dict[str, Any]
    validation: dict[str, Any] | None
    digests: Mapping[str, str]
    formats: tuple[str, ...] = ("onnx", "safetensors")
    bare: bool = False

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle directory.

        Args:
            path: The directory.
            verify: Whether to compare every file with its checksum first.

        Raises:
            BundleError: If it is not a bundle; a file is missing, damaged, edited, or does not fit the others; another
                version wrote it; or it is of a task whose package is not installed.
            MissingExtraError: If its processor needs a package that is not installed.
        """
        directory = Path(path)
        check_directory(directory)
        with locked(directory, to_write=False):
            return cls._read(directory, verify=verify)

    @classmethod
    def _read(cls, directory: Path, *, verify: bool) -> "Bundle":
        digests = verify_checksums(directory) if verify else read_checksums(directory)
        config = read_json(directory, CONFIG_FILE, digests)
        own = own_section(directory, config)
        for name in REQUIRED_FILES:
            require_listed(directory, name, digests)
        signature = _read_signature(directory, own)
        golden = read_golden(read_file(directory, GOLDEN_FILE, digests))
        processor = read_processor(own["task"], config, lambda name: read_file(directory, name, digests))
        try:
            check_parts(signature, processor, golden)
        except ValueError as error:
            raise BundleError(f"{error} (in {directory})", hint=AGAIN_HINT) from error
        return cls(
            path=directory,
            name=own["name"],
            version=own["version"],
            task=own["task"],
            config=config,
            signature=signature,
            processor=processor,
            golden=golden,
            quantization=read_json(directory, QUANTIZATION_FILE, digests),
            validation=read_json(directory, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None,
            digests=digests,
            formats=tuple(name for name, known in FORMATS.items() if known.file in digests),
        )

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
        return self.path if self.bare else self.path / ONNX_FILE

    @property
    def facts(self) -> dict[str, Any]:
        """The project's own section of config.json: format version, name, task, bits and further facts from export."""
        facts: dict[str, Any] = self.config["cpt"]
        return facts

    @property
    def calibrated(self) -> bool:
        """Whether it comes from a float model by calibration only, not from a run of cyclic precision training."""
        return bool(self.facts.get("card", {}).get("calibrated", False))

    @property
    def float_parts(self) -> dict[str, Any] | None:
        """The entry of quantization.json on operators in float between the layers; `None` if there are none."""
        found: dict[str, Any] | None = self.quantization.get(FLOAT_PARTS)
        return found

    def expect_processor(self, kind: type[P]) -> P:
        """Return the processor if it is of a class.

        Raises:
            BundleError: If it is of another one, since the bundle is of another task.
        """
        if not isinstance(self.processor, kind):
            raise BundleError(
                f"Expected a bundle with a {kind.__name__}, but {self.path} is for {self.task}",
                hint=f"`cpt serve {self.path}` serves every task",
            )
        return self.processor

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


def check_parts(signature: Signature, processor: Processor, golden: Golden) -> None:
    """Check that signature, processor and golden sample of a model fit each other.

    Raises:
        ValueError: If they do not.
    """
    processor.check(signature)
    checked_inputs(signature, golden.inputs)
    shapes = {name: array.shape for name, array in (*golden.inputs.items(), *golden.outputs.items())}
    if signature.joins_rows and len({shape[:1] for shape in shapes.values()}) != 1:
        raise ValueError(f"Expected golden inputs and outputs of equally many rows, but got the shapes {shapes}")
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    for name, array in golden.outputs.items():
        tensor = outputs.get(name)
        shape = () if tensor is None else tensor.whole_shape
        fits = array.ndim == len(shape) and all(
            size == found or isinstance(size, str) for size, found in zip(shape, array.shape, strict=True)
        )
        if tensor is None or array.dtype != tensor.dtype or not fits:
            wanted = "is not among them" if tensor is None else f"is {tensor.dtype} {shape}"
            raise ValueError(
                f"Expected golden outputs of the model, but got {array.dtype} {array.shape} of {name}, which {wanted}"
            )


def _read_signature(directory: Path, own: Mapping[str, Any]) -> Signature:
    try:
        return from_json(own["signature"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to have the model's signature, but got: {error!r}", hint=AGAIN_HINT
        ) from error
