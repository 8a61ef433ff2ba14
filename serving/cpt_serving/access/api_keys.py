"""API keys: long random strings; a file holds the name, the scopes and the SHA-256 of each.

A line of the file is `name:scopes:sha256`, e.g. `shop:infer,metrics:9f86d0…`. Keys have 256 random bits, so a plain
hash protects them: unlike passwords they cannot be guessed.
"""

import enum
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.errors import DataError, UsageError

logger = logging.getLogger(__name__)

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
KEY_PREFIX = "cpt_"
"""Prefix by which scanners for leaked secrets recognise a key."""

_RANDOM_BYTES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOK_AGAIN_S = 1.0


class Scope(enum.StrEnum):
    """A permission of a key."""

    INFER = "infer"
    """Predictions, and information on the models."""
    METRICS = "metrics"
    """The metrics."""
    ADMIN = "admin"
    """Loading and unloading models."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as stored by the server.

    Args:
        name: Name of its owner; appears in the access log.
        scopes: Permissions of the key.
        digest: SHA-256 of the key.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes

    def line(self) -> str:
        """Return the key as a line of a file."""
        return f"{self.name}:{','.join(sorted(self.scopes))}:{self.digest.hex()}"


def new_key() -> str:
    """Return a new key."""
    return KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, the only form in which it is stored."""
    return hashlib.sha256(key.encode()).digest()


def parse_keys(text: str, source: Path) -> tuple[ApiKey, ...]:
    """Parse the keys of a file; empty lines and lines that start with # are skipped.

    Raises:
        DataError: If a line has another form, or a name or a key occurs twice.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number} of {source}"
        key = _parse_line(line.strip(), where)
        if key.name in keys:
            raise DataError(f"Expected each name once, but got {key.name!r} again in {where}")
        if any(key.digest == other.digest for other in keys.values()):
            raise DataError(f"Expected each key once, but got that of {key.name!r} again in {where}")
        keys[key.name] = key
    return tuple(keys.values())


def _parse_line(line: str, where: str) -> ApiKey:
    """Return the key of a line; messages never quote the line, which may hold a key in plain text by mistake."""
    parts = line.split(":")
    if len(parts) != 3:
        raise DataError(f"Expected name:scopes:sha256 in {where}, but got {len(parts)} parts")
    name, scopes, digest = (part.strip() for part in parts)
    if not NAME_PATTERN.fullmatch(name):
        raise DataError(f"Expected a name of up to 64 letters, digits and ._- in {where}")
    if not _DIGEST.fullmatch(digest):
        raise DataError(
            f"Expected the SHA-256 of a key, 64 hexadecimal digits, in {where}", hint="cpt api-key makes such lines"
        )
    return ApiKey(name, parse_scopes(scopes.split(","), where), bytes.fromhex(digest))


def parse_scopes(names: Iterable[str], where: str) -> frozenset[Scope]:
    """Return scopes by their names.

    Raises:
        UsageError: If a name is unknown.
    """
    known = {scope.value: scope for scope in Scope}
    wanted = [name.strip() for name in names]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"Expected scopes out of {', '.join(known)} in {where}, but got {unknown[0]!r:.50}")
    return frozenset(known[name] for name in wanted)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the keys of a file.

    Raises:
        DataError: If it cannot be read or is not a file of keys.
    """
    try:
        return parse_keys(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(f"Expected a file of API keys at {path}, but got: {reason}") from error


def add_key(path: Path, name: str, scopes: Sequence[str]) -> str:
    """Create a key, append its line to a file that only the file's owner can read, and return the key.

    Raises:
        UsageError: If the name or a scope is invalid, or the name is taken.
        DataError: If the file cannot be read or written.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(f"Expected a name of up to 64 letters, digits and ._-, but got {name!r:.80}")
    wanted = parse_scopes(scopes, "--scope")
    if any(key.name == name for key in (read_keys(path) if path.exists() else ())):
        raise UsageError(f"Expected a new name, but {path} has {name!r} already", hint="remove its line to revoke it")
    key = new_key()
    line = ApiKey(name, wanted, digest_of(key)).line() + "\n"
    try:
        # A last line without a line break would swallow this one.
        before = path.read_bytes() if path.exists() else b""
        start = "\n" if before and not before.endswith(b"\n") else ""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
            file.write(start + line)
    except OSError as error:
        raise DataError(f"Expected to write {path}, but got: {error.strerror or error}") from error
    return key


class KeyRing:
    """The keys of a file, reloaded when it changes: removing a line revokes its key without a restart.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._current_stamp()
        self._keys = read_keys(path)
        self._looked = time.monotonic()

    def find(self, key: bytes) -> ApiKey | None:
        """Return the stored key that a client has sent, or `None` if it is unknown.

        The time of the comparison does not depend on the key, nor on how much of it was guessed.
        """
        self._look_again()
        digest = hashlib.sha256(key).digest()
        found = None
        for candidate in self._keys:
            if hmac.compare_digest(candidate.digest, digest):
                found = candidate
        return found

    def has(self, scope: Scope) -> bool:
        """Return whether any key has a scope."""
        self._look_again()
        return any(scope in key.scopes for key in self._keys)

    def _look_again(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        stamp = self._current_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except (DataError, UsageError) as error:
            logger.error("the API keys stay as they were: %s", error.message)
        else:
            logger.info("%s was reloaded: %d API keys", self._path, len(self._keys))

    def _current_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
