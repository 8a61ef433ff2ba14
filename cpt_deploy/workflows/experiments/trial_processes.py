"""Run trials of a grid as separate processes of `cpt train`, started or resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.errors import DataError
from cpt_deploy.metric import Metric
from cpt_deploy.recipe.grid import GRID_RUNS

if TYPE_CHECKING:
    from cpt_deploy.recipe import GridPoint
    from cpt_deploy.training import TrialOutcome


_STOPPED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class TrialProcesses:
    """Starts trials and forwards a request to stop; may be used from several threads.

    Each process has its own session, so that a signal from the terminal reaches it once, through `interrupt`.

    Args:
        folder: The grid's directory: runs are in `runs/`, their stderr in `logs/`.
        jobs: Number of simultaneous runs; each gets its share of the processor's cores unless OMP_NUM_THREADS is set.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._interrupted = False
        try:
            for name in (GRID_RUNS, "logs"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"Expected to write to {folder}, but got: {error.strerror or error}") from error

    def run_directory(self, name: str) -> Path:
        """Return the directory of a point's run."""
        return self._folder / GRID_RUNS / name

    def execute(self, point: "GridPoint") -> "TrialOutcome":
        """Train one point to its end, and return the outcome."""
        run = self.run_directory(point.name)
        words = [point.source, *point.overrides, "--out", str(run), "--automatic-resume"]
        with (self._folder / "logs" / f"{point.name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cpt_cli", "train", *words, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
                if self._interrupted:
                    process.send_signal(signal.SIGTERM)
            answer, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        return _outcome(process.returncode, answer)

    def interrupt(self) -> None:
        """Request all running trials to save and stop, once."""
        with self._lock:
            if not self._interrupted:
                self._interrupted = True
                for process in self._running:
                    process.send_signal(signal.SIGTERM)


def _outcome(code: int, answer: str) -> "TrialOutcome":
    from cpt_deploy.training import TrialOutcome

    try:
        document: dict[str, Any] = json.loads(answer)
    except ValueError:
        document = {}
    if code == 0 and "report" in document:
        metric = Metric.from_dict(document["report"]["metric"])
        figure = float(document["report"]["test"]["metrics"][metric.name])
        return TrialOutcome("finished", figure, metric=metric)
    if -code in _STOPPED or code - 128 in _STOPPED:
        return TrialOutcome("interrupted", message="stopped; it resumes from its last checkpoint")
    if "error" in document:
        return TrialOutcome("failed", message=str(document["error"]["message"]).partition("\n")[0])
    how = f"signal {-code} ended it" if code < 0 else f"it ended with code {code}"
    return TrialOutcome("failed", message=how)
