"""`cpt train-grid`: train recipes × settings × seeds, several at once, resumable, and compare them at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import TRAIN_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy.errors import CptError, RunInterruptedError

if TYPE_CHECKING:
    from cpt_cli.trial_process import TrialProcesses
    from cpt_deploy.recipe import GridPoint
    from cpt_deploy.training import FinishedRun, TrialOutcome, TrialQueue, TrialStatus


def train_grid(
    grid: Annotated[Path, typer.Argument(help="A YAML file with recipes, variants, values and seeds.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Directory of the runs.", show_default="runs/NAME of the file")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at once; they share the processor's cores.")] = 1,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Repeat failed runs, and those marked as running: use it only if no other process works on the grid.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs; train nothing.")] = False,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train a grid of experiments: recipes × variants × values of settings × seeds.

    To resume an interrupted grid, repeat the command. Several processes or machines that share the directory can work
    on one grid. A run that fails does not stop the others. Finished runs are compared at the end.
    """
    from cpt_deploy.recipe import load_grid

    points = load_grid(grid)
    directory = folder or Path("runs") / grid.stem
    again = f"cpt train-grid {grid}" + ("" if folder is None else f" --out {folder}")
    if dry_run:
        out.table(("run", "recipe", "settings"), [(p.name, p.source, " ".join(p.overrides)) for p in points])
        out.result({"folder": directory, "trials": [{"name": p.name, "state": "waiting"} for p in points]})
        return
    from cpt_cli.trial_process import TrialProcesses
    from cpt_deploy.training import TrialQueue

    processes = TrialProcesses(directory, jobs)
    queue = TrialQueue(directory, [point.name for point in points], retry=retry)
    signal_number = _work(queue, processes, points, jobs)
    statuses = queue.statuses()
    _show(statuses, processes)
    if signal_number is not None and _count(statuses, "finished") < len(points):
        raise RunInterruptedError(
            f"Stopped after {_count(statuses, 'finished')} of {len(points)} runs; the state of running ones is saved",
            signal_number=signal_number,
            hint=f"resume: {again}",
        )
    failed = [status.name for status in statuses if status.state == "failed"]
    if failed:
        raise CptError(
            f"Expected all {len(points)} runs to finish, but {len(failed)} failed: {', '.join(failed)}",
            hint=f"see {formats.path(directory / 'logs')}; {again} --retry tries them again",
        )


def _work(queue: "TrialQueue", processes: "TrialProcesses", points: "list[GridPoint]", jobs: int) -> int | None:
    """Execute the waiting runs; return the number of the signal that stopped them, or None."""
    from cpt_deploy.training import Interruption

    by_name = {point.name: point for point in points}
    running: list[str] = []
    done = _count(queue.statuses(), "finished")
    if done:
        out.note(f"going on: {done} of {len(points)} runs are finished")

    with Interruption() as interruption, out.bar("grid", len(points), start=done) as bar:

        def changed(name: str, outcome: "TrialOutcome | None") -> None:
            nonlocal done
            if outcome is None:
                running.append(name)
            else:
                running.remove(name)
                done += outcome.state == "finished"
                said = _figure(outcome) if outcome.state == "finished" else outcome.message
                out.note(f"{name}: {outcome.state}, {said}")
            bar.advance(done, detail=", ".join(running))

        def stopping() -> bool:
            if interruption.requested:
                processes.interrupt()
            return interruption.requested

        queue.work(lambda name: processes.execute(by_name[name]), jobs=jobs, stopping=stopping, on_change=changed)
        return interruption.signal_number


def _show(statuses: "list[TrialStatus]", processes: "TrialProcesses") -> None:
    from cpt_cli.commands.compare import show_groups
    from cpt_deploy.training import group_runs, read_finished_run

    rows = [(s.name, s.state, _figure(s), s.message or "") for s in statuses]
    measures = {"accuracy" if s.perplexity is None else "perplexity" for s in statuses if s.state == "finished"}
    out.table(("run", "state", " or ".join(sorted(measures or {"accuracy"})), ""), rows)
    finished = [processes.run_directory(status.name) for status in statuses if status.state == "finished"]
    runs = [read_finished_run(run) for run in finished]
    groups = [group for measure in sorted(measures) for group in show_groups(group_runs(_of(measure, runs)))]
    out.result({"trials": statuses, "groups": groups})


def _of(measure: str, runs: "list[FinishedRun]") -> "list[FinishedRun]":
    """Return the runs with a given measure: a grid may have both classifiers and language models."""
    return [run for run in runs if run.measure == measure]


def _figure(trial: "TrialOutcome | TrialStatus") -> str:
    return formats.share(trial.accuracy) if trial.perplexity is None else f"{trial.perplexity:.2f}"


def _count(statuses: "list[TrialStatus]", state: str) -> int:
    return sum(status.state == state for status in statuses)


COMMAND = Command(
    name="train-grid",
    function=train_grid,
    panel=TRAIN_PANEL,
    examples=(
        "cpt train-grid grid.yaml --dry-run  # lists the runs",
        "cpt train-grid grid.yaml --jobs 2  # repeat it after Ctrl-C to resume",
        "cpt train-grid grid.yaml --out /shared/grid  # on several machines that share the directory",
    ),
)
