"""Directories of files that are whole: all files of a change appear under their names or none, also to readers."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def replace_directory(destination: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files, replacing an existing one.

    Everything is written and flushed to the disk under a temporary name next to the destination and then renamed, so
    that a full disk or a killed process never leaves an incomplete directory under the final name.

    Args:
        destination: The directory to write; its parents are created.
        files: The content of each file by its plain name.

    Raises:
        OSError: If something cannot be written; an existing directory is unchanged then.
    """
    # For a symbolic link, the directory that it points to is replaced, not the link.
    destination = Path(os.path.realpath(destination))
    destination.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{destination.name}.{secrets.token_hex(4)}"
    fresh, old = destination.parent / f"{mark}.tmp", destination.parent / f"{mark}.old"
    try:
        fresh.mkdir()
        for name, content in files.items():
            _write_file(fresh / name, content)
        _flush_directory(fresh)
        _swap(fresh, destination, old)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _flush_directory(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(directory: Path, *, to_write: bool) -> Iterator[None]:
    """Keep other processes from writing files of a directory inside the context; wait for one that does.

    Only processes that enter this context are kept out: any number of them can read, or a single one can write.
    """
    with ExitStack() as stack:
        # A file system over the network may not lock directories; one that cannot be read is reported by what reads it.
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX if to_write else fcntl.LOCK_SH)
        yield


def replace_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Replace or add files of a directory, in order, once all of them are on the disk.

    Args:
        directory: The directory.
        files: The content of each file by its plain name.

    Raises:
        OSError: If something cannot be written; the directory is unchanged then.
    """
    mark = secrets.token_hex(4)
    temporary = {name: directory / f".{name}.{mark}.tmp" for name in files}
    try:
        for name, content in files.items():
            _write_file(temporary[name], content)
        for name in files:
            temporary[name].replace(directory / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    _flush_directory(directory)


def _swap(fresh: Path, destination: Path, old: Path) -> None:
    """Rename `fresh` to `destination`; an existing directory is renamed to `old` first, as rename requires."""
    if not destination.exists():
        fresh.rename(destination)
        return
    destination.rename(old)
    try:
        fresh.rename(destination)
    except BaseException:
        old.rename(destination)
        raise


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
