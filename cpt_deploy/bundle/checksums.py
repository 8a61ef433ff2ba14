"""Read, write and verify SHA256SUMS of a bundle, in the format of `sha256sum --check`."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from cpt_deploy.bundle.layout import EVIDENCE_FILES, PENDING_SUMS_FILE, SUMS_FILE
from cpt_deploy.errors import BundleError

AGAIN_HINT = "copy the bundle again, or export it again with `cpt export`"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def checksum_lines(digests: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS for hexadecimal digests by file name, sorted by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def content_digest(digests: Mapping[str, str]) -> str:
    """Return a single SHA-256 of all files of a bundle except those that `cpt validate` writes, hexadecimal.

    It is the digest of the lines of SHA256SUMS without those files:
    `grep -vE '  (README.md|validation.json|validation.html)$' SHA256SUMS | sha256sum`.

    Args:
        digests: The digests of the files by their names.
    """
    lines = checksum_lines({name: digest for name, digest in digests.items() if name not in EVIDENCE_FILES})
    return hashlib.sha256(lines.encode()).hexdigest()


def read_checksums(directory: Path, name: str = SUMS_FILE) -> dict[str, str]:
    """Read SHA256SUMS.

    Args:
        directory: The bundle.
        name: Name of the file with the checksums.

    Returns:
        The hexadecimal digest of each file by its name.

    Raises:
        BundleError: If the file is missing or malformed, or names a file outside of the bundle.
    """
    try:
        text = (directory / name).read_text(encoding="utf-8")
    except OSError as error:
        raise BundleError(
            f"Expected a readable {name} in {directory}, but got: {error.strerror or error}", hint=AGAIN_HINT
        ) from error
    except UnicodeDecodeError as error:
        raise BundleError(f"Expected text in {directory / name}, but got other bytes", hint=AGAIN_HINT) from error
    digests: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise BundleError(
                f"Expected lines '<sha256>  <file>' in {directory / name}, but got {line[:80]!r}", hint=AGAIN_HINT
            )
        digest, file_name = match.groups()
        # A bundle is flat: a separator, drive or dot name can only lead out of it.
        if file_name in {".", ".."} or re.search(r"[/\\:\x00]", file_name):
            raise BundleError(
                f"Expected {name} to name files inside of {directory}, but got {file_name!r}",
                hint="this bundle was tampered with: do not use it",
            )
        digests[file_name] = digest
    return digests


def verify_checksums(directory: Path) -> dict[str, str]:
    """Compare every file that SHA256SUMS names with its digest.

    After an interrupted update, a bundle has old and new files; each file must match the old or the new checksum.

    Returns:
        The digests by file name, as from `read_checksums`.

    Raises:
        BundleError: If a file is missing or differs; the message names the first one.
    """
    listed = read_checksums(directory)
    pending = read_checksums(directory, PENDING_SUMS_FILE) if (directory / PENDING_SUMS_FILE).is_file() else {}
    verified: dict[str, str] = {}
    for name in listed | pending:
        path = directory / name
        if name not in listed and not path.exists():
            continue
        accepted = {digests[name] for digests in (listed, pending) if name in digests}
        found = _digest(path)
        if found not in accepted:
            raise BundleError(
                f"Expected {name} in {directory} to have SHA-256 {min(accepted)[:12]}…, but got {found[:12]}…: "
                f"the file is truncated or was edited",
                hint=AGAIN_HINT,
            )
        verified[name] = found
    return verified


def _digest(path: Path) -> str:
    if not path.is_file():
        raise BundleError(f"Expected the file {path.name} in {path.parent}, but it is missing", hint=AGAIN_HINT)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"Expected to read {path}, but got: {error.strerror or error}", hint=AGAIN_HINT) from error
