"""Read the files of a bundle: a directory with valid checksums, and a config.json of a known format version."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.bundle.checksums import AGAIN_HINT
from cpt_deploy.bundle.layout import CONFIG_FILE, FORMAT_VERSION, ONNX_FILE, SUMS_FILE
from cpt_deploy.errors import BundleError


def check_directory(directory: Path) -> None:
    """Raise a `BundleError` that describes the path, unless it looks like a bundle."""
    how = "`cpt export RUN` writes a bundle"
    if not directory.exists():
        raise BundleError(f"Expected a bundle at {directory}, but there is nothing", hint=how)
    if not directory.is_dir():
        if directory.suffix == ".onnx":
            how = f"cpt export --from {readable.argument(directory)} --data inputs.npz makes a bundle of it"
        raise BundleError(f"Expected a bundle directory at {directory}, but it is a file", hint=how)
    if (directory / SUMS_FILE).is_file():
        return
    if (directory / "recipe.yaml").is_file():
        raise BundleError(
            f"Expected a bundle at {directory}, but it is the directory of a training run",
            hint=f"export it first: cpt export {readable.argument(directory)}",
        )
    if (directory / CONFIG_FILE).is_file() and (directory / ONNX_FILE).is_file():
        raise BundleError(f"Expected the file {SUMS_FILE} in {directory}, but it is missing", hint=AGAIN_HINT)
    raise BundleError(f"Expected a bundle at {directory}, but it has no {SUMS_FILE}: it is not a bundle", hint=how)


def bundle_task(directory: Path) -> str | None:
    """Return the task that a bundle is for; `None` if it cannot be read.

    It only selects the code that opens the bundle: the content is trusted after its checksum was verified.
    """
    try:
        check_directory(directory)
        own = read_json(directory, CONFIG_FILE, {CONFIG_FILE: ""}).get("cpt")
    except BundleError:
        return None
    task = own.get("task") if isinstance(own, dict) else None
    return task if isinstance(task, str) else None


def own_section(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the project's section of config.json, after checking that its format version can be read."""
    own = config.get("cpt")
    own = own if isinstance(own, dict) else {}
    _check_version(directory, own.get("format_version"))
    if not all(isinstance(own.get(key), str) for key in ("name", "version", "task")):
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to have the model's name, version and task, but it does not",
            hint=AGAIN_HINT,
        )
    return own


def _check_version(directory: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"Expected {directory / CONFIG_FILE} to have its cpt.format_version, but got {version!r}", hint=AGAIN_HINT
        )
    if version != FORMAT_VERSION:
        newer = "a newer cpt-deploy wrote it: install that version"
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
