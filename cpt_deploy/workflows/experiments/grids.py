"""Train a grid of experiments: several at once, each in its own process, resumed after interruptions."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.tasks import SILENT, Reporter
from cpt_deploy.workflows.experiments.trial_processes import TrialProcesses

if TYPE_CHECKING:
    from cpt_deploy.recipe import GridPoint
    from cpt_deploy.training import TrialOutcome, TrialQueue


@dataclass(frozen=True)
class TrainedGrid:
    """State of a grid.

    Args:
        trials: The state of each point, by its name.
        runs: Directories of the finished runs.
        signal_number: The signal that ended the work, if any.
    """

    trials: "Mapping[str, TrialOutcome]"
    runs: tuple[Path, ...]
    signal_number: int | None = None

    def in_state(self, state: str) -> list[str]:
        """Return the names of the points in a state, such as finished or failed."""
        return [name for name, trial in self.trials.items() if trial.state == state]


def train_grid(
    points: "Sequence[GridPoint]", folder: Path, *, jobs: int = 1, retry: bool = False, reporter: Reporter = SILENT
) -> TrainedGrid:
    """Train the waiting points of a grid; on SIGINT and SIGTERM running ones save a checkpoint and stop.

    Several processes or machines that share the folder train one grid together. A failed run does not end the others.

    Args:
        points: The experiments, from `load_grid`.
        folder: Directory of the runs.
        jobs: Number of simultaneous runs, which share the processor's cores.
        retry: Whether failed runs are tried again, and those whose state is still "running".
        reporter: Receives messages and progress.

    Raises:
        DataError: If the folder cannot be written.
        MissingExtraError: If Optuna is not installed.
        UsageError: If a point was begun with other settings.
    """
    from cpt_deploy.training import TrialQueue

    processes = TrialProcesses(folder, jobs)
    digests = {point.name: hashlib.sha256(point.recipe.model_dump_json().encode()).hexdigest() for point in points}
    queue = TrialQueue(folder, digests, retry=retry)
    signal_number = _work(queue, processes, points, jobs, reporter)
    trials = queue.outcomes()
    runs = tuple(processes.run_directory(name) for name, trial in trials.items() if trial.state == "finished")
    return TrainedGrid(trials, runs, signal_number)


def figure_in_words(trial: "TrialOutcome") -> str:
    """Describe the result of a finished trial."""
    return "none" if trial.metric is None else trial.metric.text(trial.figure)


def _work(
    queue: "TrialQueue", processes: TrialProcesses, points: "Sequence[GridPoint]", jobs: int, reporter: Reporter
) -> int | None:
    """Execute the waiting runs; return the number of the signal that stopped them, or None."""
    from cpt_deploy.training import Interruption

    by_name = {point.name: point for point in points}
    running: list[str] = []
    done = sum(trial.state == "finished" for trial in queue.outcomes().values())
    if done:
        reporter.note(f"resuming: {done} of {len(points)} runs are finished")

    with Interruption() as interruption, reporter.bar("grid", len(points), start=done) as bar:

        def changed(name: str, outcome: "TrialOutcome | None") -> None:
            nonlocal done
            if outcome is None:
                running.append(name)
            else:
                running.remove(name)
                done += outcome.state == "finished"
                said = figure_in_words(outcome) if outcome.state == "finished" else outcome.message
                reporter.note(f"{name}: {outcome.state}, {said}")
            bar.advance(done, detail=", ".join(running))

        def stopping() -> bool:
            if interruption.requested:
                processes.interrupt()
            return interruption.requested

        queue.work(lambda name: processes.execute(by_name[name]), jobs=jobs, stopping=stopping, on_change=changed)
        return interruption.signal_number
