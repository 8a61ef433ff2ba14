"""`cpt train-grid`: train recipes × settings × seeds, several at once, resumable, and compare them at the end."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.shown.comparison import show_groups
from cpt_deploy import readable
from cpt_deploy.errors import CptError, RunInterruptedError

if TYPE_CHECKING:
    from cpt_deploy.workflows import TrainedGrid


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
) -> None:
    """Train a grid of experiments: recipes, variants, values of settings, seeds.

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
    from cpt_deploy.workflows import train_grid as train_points

    trained = train_points(points, directory, jobs=jobs, retry=retry, reporter=out)
    _show(trained)
    finished, failed = trained.in_state("finished"), trained.in_state("failed")
    if trained.signal_number is not None and len(finished) < len(points):
        raise RunInterruptedError(
            f"Stopped after {len(finished)} of {len(points)} runs; those that ran are saved",
            signal_number=trained.signal_number,
            hint=f"resume: {again}",
        )
    if failed:
        raise CptError(
            f"Expected all {len(points)} runs to finish, but {len(failed)} failed: {', '.join(failed)}",
            hint=f"see {readable.path(directory / 'logs')}; {again} --retry tries them again",
        )


def _show(trained: "TrainedGrid") -> None:
    from cpt_deploy.training import group_runs, read_finished_run
    from cpt_deploy.workflows.experiments.grids import figure_in_words

    rows = [(name, trial.state, figure_in_words(trial), trial.message or "") for name, trial in trained.trials.items()]
    runs = [read_finished_run(run) for run in trained.runs]
    metrics = sorted({run.metric.title for run in runs})  # a grid may hold runs of several tasks
    out.table(("run", "state", " or ".join(metrics or ["accuracy"]), ""), rows)
    groups = [
        group
        for metric in metrics
        for group in show_groups(group_runs([run for run in runs if run.metric.title == metric]))
    ]
    trials = [{"name": name, **asdict(trial)} for name, trial in trained.trials.items()]
    out.result({"trials": trials, "groups": groups})


COMMAND = Command(
    train_grid,
    "cpt train-grid grid.yaml --dry-run  # lists the runs",
    "cpt train-grid grid.yaml --jobs 2  # repeat it after Ctrl-C to resume",
    "cpt train-grid grid.yaml --out /shared/grid  # on several machines that share the directory",
)
