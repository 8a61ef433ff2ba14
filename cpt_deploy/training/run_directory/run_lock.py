"""A lock on a run directory: at most one process trains in it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_deploy.errors import UsageError
from cpt_deploy.training.run_directory.files import disk_errors


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a run directory inside the context.

    The system releases the lock when the process ends for any reason, so the file of a dead process is taken over.
    (A record lock, `fcntl(2)`: unlike one of `flock(2)`, loading processes that are forked later do not inherit it.)

    Args:
        path: The lock file; it contains the process id and the host, and is removed on exit.

    Raises:
        UsageError: If another process holds the lock; the message names its id.
        DataError: If the file cannot be written.
    """
    with disk_errors("the lock of the run", path):
        descriptor = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether another process holds a lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False


def _locked(path: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # both mean that another process holds it
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise _taken(path.parent, holder) from error
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder removed it between our opening and locking it
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _taken(directory: Path, holder: str) -> UsageError:
    return UsageError(
        f"Expected no other process to train in {directory}, but {holder or 'one that has just begun'} does",
        hint="wait for it; or stop it with Ctrl-C or kill, which saves its state, and then resume",
    )
