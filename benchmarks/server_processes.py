"""Servers as processes on one core: start-up until ready, suspension while others are measured, and memory."""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from load_generation import PreparedRequest

READY_WITHIN_S = 60.0
AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class ServerCommand:
    """How to start a server.

    Args:
        name: Name in the results.
        command: Program and arguments.
        port: Port to listen on.
        ready_path: Path that answers 200 once the server is ready for inference, not before.
        environment: Environment variables in addition to those of this process.
        folder: Working directory.
    """

    name: str
    command: Sequence[str]
    port: int
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass
class RunningServer:
    """A started server.

    Args:
        name: Name in the results.
        port: Port of the server.
        process: First process of the server.
        start_s: Seconds from the start until it was ready.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    start_s: float

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def resident_mib(self) -> float:
        """Return the memory of all processes in MiB; shared pages are counted once."""
        return sum(map(_proportional_kib, process_tree(self.process.pid))) / 1024

    def post(self, request: PreparedRequest) -> tuple[Mapping[str, str], bytes]:
        """Send one request and return headers (names in lower case) and body of the answer.

        Raises:
            RuntimeError: If the answer is an error.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", request.path, request.body, dict(request.headers))
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"Expected {self.name} to answer 200, but got {answer.status}: {content[:500]!r}")
        return {name.lower(): value for name, value in answer.getheaders()}, content


@contextmanager
def running(server: ServerCommand, *, core: int, log: IO[bytes]) -> Iterator[RunningServer]:
    """Start a server on one core, wait until it is ready, and stop it on exit.

    Raises:
        RuntimeError: If it exits or is not ready in time.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(core), *server.command],
        env={**os.environ, **server.environment},
        cwd=server.folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        while not _is_ready(server):
            if process.poll() is not None or time.perf_counter() - started > READY_WITHIN_S:
                said = Path(log.name).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Expected {server.name} to become ready, but it did not; the log ends:\n{said}")
            _share_niceness(process.pid)
            time.sleep(0.01)
        _share_niceness(process.pid)
        yield RunningServer(server.name, server.port, process, time.perf_counter() - started)
    finally:
        _end(process)


@contextmanager
def only_awake(server: RunningServer | None, servers: Sequence[RunningServer]) -> Iterator[None]:
    """Suspend all servers except the given one, if any, so that they do not disturb the measurement."""
    others = [other for other in servers if other is not server]
    for other in others:
        other.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            other.signal(signal.SIGCONT)


def set_niceness(niceness: int) -> None:
    """Set the niceness of this process and its children, also relative to other sessions.

    Args:
        niceness: -20 to 19; below zero needs root.
    """
    os.nice(niceness - os.nice(0))
    # If Linux groups processes by session, niceness applies within a session only, and this setting between sessions.
    if niceness and AUTOGROUP.exists():
        AUTOGROUP.write_text(str(niceness))


def _share_niceness(root: int) -> None:
    """Apply the niceness of this session to the sessions that a server has opened."""
    niceness = os.nice(0)
    if niceness and AUTOGROUP.exists():
        for pid in process_tree(root):
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def process_tree(root: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may contain any character; the parent is the second field after it.
            pid, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


def _proportional_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _is_ready(server: ServerCommand) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", server.ready_path)
        return connection.getresponse().status == http.client.OK
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and all processes that it started."""
    tree = process_tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
