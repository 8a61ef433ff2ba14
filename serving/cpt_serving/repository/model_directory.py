"""Finding bundles at a path, one bundle or a directory `name/version/`, and ordering their versions."""

import functools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.bare import bundle_of_file, file_name
from cpt_deploy.bundle.layout import SUMS_FILE
from cpt_deploy.errors import BundleError, CptError

logger = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """A bundle on disk, and the name and version by which clients address it.

    Args:
        path: Directory of the bundle, or an ONNX file.
        name: Name of the model; `None` takes the bundle's own.
        version: Version of the model; `None` takes the bundle's own.
        fingerprint: Name, size and modification time (ns) of each file; it changes when a file is replaced.
    """

    path: Path
    name: str | None
    version: str | None
    fingerprint: Fingerprint

    def open(self) -> Bundle:
        """Verify the checksums and open the bundle, under the name by which clients address it.

        Raises:
            BundleError: If it cannot be opened.
            MissingExtraError: If its tokenizer needs a package that is not installed.
        """
        if self.path.is_file():
            return bundle_of_file(self.path, self.name, self.version)
        bundle = Bundle.open(self.path)
        return replace(bundle, name=self.name or bundle.name, version=self.version or bundle.version)

    def address(self, known: tuple[str, str] | None = None) -> tuple[str, str]:
        """Return the name and version by which clients address it, without verifying its checksums.

        Args:
            known: The address so far, which stays while the bundle cannot be read; by default that of its directory.
        """
        if self.name is not None and self.version is not None:
            return self.name, self.version
        if self.path.is_file():
            return self.name or file_name(self.path), self.version or "1"
        try:
            bundle = Bundle.open(self.path, verify=False)
        except CptError:
            return known or (self.name or self.path.name, self.version or "1")
        return self.name or bundle.name, self.version or bundle.version


def find_models(path: Path) -> list[ModelLocation]:
    """Return the models at a path.

    A file is an ONNX model without a bundle. A directory with SHA256SUMS is one bundle. In any other directory each
    file *.onnx is a model, and each sub-directory: a bundle itself, or a directory of versions, each of them a bundle.
    Hidden names are skipped, so that a new version can be copied under a hidden name and then renamed. Names that are
    not in UTF-8 are skipped too, with an error in the log, because no answer could hold them.

    Raises:
        BundleError: If there is no directory at the path, or a part of it cannot be read.
    """
    try:
        return _find(path)
    except OSError as error:
        raise BundleError(
            f"Expected to read the directory {path}, but got: {error.strerror or error} ({error.filename})"
        ) from error


def _find(path: Path) -> list[ModelLocation]:
    if path.is_file():
        return [ModelLocation(path, None, None, _fingerprint(path))]
    if not path.is_dir():
        raise BundleError(
            f"Expected a bundle at {path}, but there is nothing",
            hint="`cpt export RUN` writes a bundle; a directory of them holds NAME/VERSION/",
        )
    if (path / SUMS_FILE).is_file():
        return [ModelLocation(path, None, None, _fingerprint(path))]
    files = (file for file in sorted(path.glob("[!.]*.onnx")) if file.is_file() and _in_utf8(file))
    models = [ModelLocation(file, file_name(file), "1", _fingerprint(file)) for file in files]
    for model in _directories(path):
        if (model / SUMS_FILE).is_file():
            models.append(ModelLocation(model, model.name, None, _fingerprint(model)))
        else:
            models += [
                ModelLocation(version, model.name, version.name, _fingerprint(version))
                for version in _directories(model)
                if (version / SUMS_FILE).is_file()
            ]
    return models


def version_order(version: str) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Return a key that sorts versions: numbers last and by value, other names in natural order ("v9" before "v10")."""
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    natural = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)
    return version.isascii() and version.isdecimal(), natural


def _directories(path: Path) -> Iterator[Path]:
    entries = (entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith("."))
    return (entry for entry in entries if _in_utf8(entry))


@functools.cache  # so that each is logged once
def _in_utf8(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        logger.error("Expected names in UTF-8, but got %a, which is not served", str(path))
        return False
    return True


def _fingerprint(path: Path) -> Fingerprint:
    try:
        files = [path] if path.is_file() else path.iterdir()
        return tuple(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    except OSError:
        # A file is being moved away at this moment; the next check will find the new state.
        return ()
