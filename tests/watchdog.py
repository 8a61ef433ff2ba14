"""Ends what a test run has started, as soon as the run itself has ended, however it ended.

An interrupted or killed pytest ends without its fixtures, and servers, workers and trainings that it started would go
on. `conftest.py` starts this program beside each run: `python watchdog.py MARK PARENT`. All processes of the run, also
those that its children started, carry the environment variable MARK, by which they are found in /proc (Linux).
"""

import os
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 3.0


def processes_with(mark: str) -> list[int]:
    """The ids of the running processes whose environment has the variable `mark`, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or another user's
        if any(variable.startswith(f"{mark}=".encode()) for variable in variables):
            found.append(int(folder.name))
    return [process for process in found if process != os.getpid()]


def end(mark: str) -> None:
    """Ask the processes with the variable `mark` to end, and kill those that have not after three seconds."""
    deadline = time.monotonic() + PATIENCE_S
    asked: set[int] = set()
    while (running := processes_with(mark)) and time.monotonic() < deadline + PATIENCE_S:
        late = time.monotonic() > deadline
        for process in running:
            if late or process not in asked:
                _signal(process, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(running)
        time.sleep(0.1)


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def main() -> None:
    """Wait until the parent has ended, which gives this process another parent."""
    parent = int(sys.argv[2])
    while os.getppid() == parent:
        time.sleep(0.2)
    end(sys.argv[1])


if __name__ == "__main__":
    main()
