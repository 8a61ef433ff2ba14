"""The queue of a grid's trials, which several processes and machines work through; stored by Optuna.

The queue is a journal file in the grid's directory: each process that opens it takes the next waiting trial. The
results of a trial are in its run directory, so an interrupted trial continues from its checkpoint. Optuna's samplers
are not used.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_deploy.metric import Metric
from cpt_deploy.recipe.grid import GRID_RUNS
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.run_directory.run_lock import is_locked

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TrialState = Literal["waiting", "running", "finished", "failed", "interrupted"]
JOURNAL = "trials.log"
_READY = "ready"
_METRIC = "metric"
_SETTINGS = "settings"
_POLL_SECONDS = 0.2
#: Max time for another process to fill a queue that it has created.
_FILLING_SECONDS = 10.0


@dataclass(frozen=True)
class TrialOutcome:
    """The state of a trial's last attempt, and its result.

    Args:
        state: "finished", "failed" or "interrupted"; in a queue also "waiting" and "running".
        figure: Value of the metric of a finished run.
        message: Why it is not finished, or where it runs.
        metric: The metric of a finished run.
    """

    state: TrialState
    figure: float | None = None
    message: str | None = None
    metric: Metric | None = None


class TrialQueue:
    """The queue of a grid.

    Args:
        folder: The grid's directory, which processes of other machines may share.
        points: The points of the grid: the name of each, and the digest of its settings.
        retry: Whether failed trials are queued again, and all running ones too: whether a trial still runs on another
            machine cannot be determined from here.

    Raises:
        MissingExtraError: If Optuna is not installed.
        UsageError: If a point was begun with other settings.
    """

    def __init__(self, folder: Path, points: Mapping[str, str], *, retry: bool = False) -> None:
        self.points = dict(points)
        self._study = _open_study(folder)
        self._fill()
        self._check_settings(folder, retry=retry)
        self._queue_again(folder, retry=retry)

    def outcomes(self) -> dict[str, TrialOutcome]:
        """Return the state of each point, in the grid's order."""
        return {name: _outcome(trial) for name, trial in self._last().items()}

    def work(
        self,
        execute: Callable[[str], TrialOutcome],
        *,
        jobs: int = 1,
        stopping: Callable[[], bool] = lambda: False,
        on_change: Callable[[str, TrialOutcome | None], None] | None = None,
    ) -> None:
        """Run waiting trials until none is left; a failed trial does not stop the others.

        Args:
            execute: Runs a point; called in threads.
            jobs: Number of concurrent trials.
            stopping: Polled; while it returns true, no further trial is started.
            on_change: Called with each point and None when it starts, and with its outcome when it ends.
        """
        running: dict[Future[TrialOutcome], tuple[Trial, str]] = {}
        with ThreadPoolExecutor(jobs) as executor:
            while True:
                stop = stopping()
                while len(running) < jobs and not stop:
                    trial = self._take()
                    if trial is None:
                        break
                    name = trial.user_attrs["point"]
                    if on_change is not None:
                        on_change(name, None)
                    running[executor.submit(execute, name)] = (trial, name)
                if not running:
                    return
                done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    trial, name = running.pop(future)
                    outcome = future.result()
                    self._tell(trial, outcome)
                    if on_change is not None:
                        on_change(name, outcome)

    def _fill(self) -> None:
        """Queue the missing points; if another process has just created the queue, wait until it has filled it."""
        deadline = time.monotonic() + _FILLING_SECONDS
        began = not self._study.get_trials(deepcopy=False)
        while not began and _READY not in self._study.user_attrs and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        there = {trial.user_attrs.get("point") for trial in self._study.get_trials(deepcopy=False)}
        for name in self.points:
            if name not in there:
                self._enqueue(name)
        self._study.set_user_attr(_READY, True)

    def _check_settings(self, folder: Path, *, retry: bool) -> None:
        """Make sure that each point has the settings of its trial; a failed one may be tried again with others."""
        for name, trial in self._last().items():
            changed = trial.user_attrs.get(_SETTINGS) != self.points[name]
            if changed and not (retry and _outcome(trial).state == "failed"):
                raise UsageError(
                    f"Expected {name} with the settings that {folder} has it with, but the grid gives it others",
                    hint="train a changed grid in another folder, or give the changed point another name",
                )

    def _queue_again(self, folder: Path, *, retry: bool) -> None:
        from optuna.trial import TrialState as State

        for name, trial in self._last().items():
            state = _outcome(trial).state
            lost = state == "running" and (retry or _is_lost(trial))
            # Whoever took the trial may be gone and leave its process behind, which goes on.
            lost = lost and not is_locked(RunDirectory(folder / GRID_RUNS / name).lock)
            if lost:
                self._study.tell(trial.number, state=State.FAIL)
            if lost or state == "interrupted" or (retry and state == "failed"):
                self._enqueue(name)

    def _enqueue(self, name: str) -> None:
        self._study.enqueue_trial({}, user_attrs={"point": name, _SETTINGS: self.points[name]})

    def _take(self) -> "Trial | None":
        """Take the next waiting trial, or return None if there is none."""
        from optuna.trial import TrialState as State

        while self._study.get_trials(deepcopy=False, states=(State.WAITING,)):
            trial = self._study.ask()
            if trial.user_attrs.get("point") in self.points:
                trial.set_user_attr("host", socket.gethostname())
                trial.set_user_attr("process", os.getpid())
                return trial
            # Another process took the trial first and Optuna made a new one, or the point is no longer in the grid.
            self._study.tell(trial, state=State.PRUNED)
        return None

    def _tell(self, trial: "Trial", outcome: TrialOutcome) -> None:
        from optuna.trial import TrialState as State

        trial.set_user_attr("outcome", outcome.state)
        trial.set_user_attr("message", outcome.message)
        if outcome.state == "finished" and outcome.figure is not None and outcome.metric is not None:
            trial.set_user_attr(_METRIC, outcome.metric.to_dict())
            self._study.tell(trial, outcome.figure)
        else:
            self._study.tell(trial, state=State.FAIL)

    def _last(self) -> "dict[str, FrozenTrial]":
        """Return the last attempt at each point of the grid."""
        trials = {trial.user_attrs.get("point"): trial for trial in self._study.get_trials(deepcopy=False)}
        return {name: trials[name] for name in self.points}


def _open_study(folder: Path) -> "Study":
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtraError(
            "Expected Optuna, which keeps the trials of a grid, but it is not installed",
            extra="grid",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(study_name="grid", storage=storage, direction="maximize", load_if_exists=True)


def _outcome(trial: "FrozenTrial") -> TrialOutcome:
    attributes = trial.user_attrs
    if trial.state.name == "RUNNING":
        return TrialOutcome("running", message=f"on {attributes.get('host', 'an unknown machine')}")
    if trial.state.name == "COMPLETE":
        return TrialOutcome("finished", trial.value, metric=Metric.from_dict(attributes[_METRIC]))
    if trial.state.name == "WAITING":
        return TrialOutcome("waiting")
    state: TrialState = "interrupted" if attributes.get("outcome") == "interrupted" else "failed"
    return TrialOutcome(state, message=attributes.get("message"))


def _is_lost(trial: "FrozenTrial") -> bool:
    """Return whether a running trial's process was on this machine and no longer exists."""
    process = trial.user_attrs.get("process")
    if trial.user_attrs.get("host") != socket.gethostname() or process is None:
        return False
    if int(process) == os.getpid():
        return True  # an earlier attempt in this very process
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
