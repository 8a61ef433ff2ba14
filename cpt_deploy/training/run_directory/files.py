"""Write the files of a run atomically, and report disk errors clearly."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_deploy.errors import DataError


@contextmanager
def disk_errors(what: str, path: Path, *, hint: str | None = None) -> Iterator[None]:
    """Turn an `OSError` inside the context into a `DataError` that names the file and its content.

    Args:
        what: Name of the content, for the message.
        path: The file.
        hint: Hint of the error.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Expected to write {what} to {path}, but got: {reason}", hint=hint) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    Raises:
        OSError: If it cannot be written; a previous file of that name is unchanged.
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
