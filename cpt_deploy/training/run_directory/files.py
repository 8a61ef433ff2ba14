"""Files of a run appear whole or not at all, and a full disk is one clear error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_deploy.errors import DataError


@contextmanager
def disk_errors(what: str, path: Path, *, hint: str | None = None) -> Iterator[None]:
    """Turn an `OSError` inside the context into a `DataError` that says what could not be written where.

    Args:
        what: What is written, as the message names it.
        path: Where.
        hint: What is still there or what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Expected to write {what} to {path}, but got: {reason}", hint=hint) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    Raises:
        OSError: If it cannot be written; what had the name before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
