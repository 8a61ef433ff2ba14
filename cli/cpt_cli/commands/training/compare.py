"""`cpt compare`: compare finished runs, accuracy or perplexity against the cost of training."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.shown.comparison import show_groups

if TYPE_CHECKING:
    from cpt_deploy.training import RunGroup


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories that cpt train wrote; the first is the reference.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw accuracy, or perplexity, against BitOPs into this PNG or SVG file.")
    ] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Write one line per run to this file.")] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            help="Draw loss, test accuracy or validation perplexity, and bits over the steps into this PNG or SVG file."
        ),
    ] = None,
    curves_table: Annotated[
        Path | None,
        typer.Option("--curves-csv", help="Write mean and standard deviation over the seeds at each logged step."),
    ] = None,
) -> None:
    """Compare finished runs: the metric of their task, its spread over seeds, BitOPs, and time.

    Runs that differ only in their seed form one group. Differences are paired: each run against the reference's run
    with the same seed. Runs of tasks with different metrics are not compared with each other.
    """
    from cpt_deploy.training import group_runs, read_finished_run
    from cpt_deploy.workflows import run_at

    groups = group_runs([read_finished_run(run) for run in dict.fromkeys(map(run_at, runs))])
    entries = show_groups(groups)
    if plot is not None:
        _draw(groups, plot)
    if table is not None:
        _write_csv(groups, table)
    if curves is not None or curves_table is not None:
        _show_curves(groups, curves, curves_table)
    out.result({"groups": entries})


def _draw(groups: "list[RunGroup]", plot: Path) -> None:
    from cpt_deploy.report import ComparedGroup, check_plot_path, plot_comparison

    check_plot_path(plot)
    points = [ComparedGroup(g.label, g.figures, g.gbitops, g.metric) for g in groups]
    with out.writing(plot):
        plot_comparison(points, plot)


def _show_curves(groups: "list[RunGroup]", plot: Path | None, table: Path | None) -> None:
    from cpt_deploy.report import check_plot_path, plot_seed_curves
    from cpt_deploy.training import seed_curves

    if plot is not None:
        check_plot_path(plot)
    drawn = [seed_curves(group) for group in groups]
    if plot is not None:
        with out.writing(plot):
            plot_seed_curves(drawn, plot)
    if table is not None:
        with out.writing(table), table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("group", "figure", "step", "mean", "deviation"))
            for group in drawn:
                name = group.metric.name
                bands = (("loss", group.loss), (name, group.figure), (f"test_{name}", group.held_out))
                for name, band in bands:
                    deviations: Sequence[float | str] = band.deviations or [""] * len(band.steps)
                    rows = zip(band.steps, band.means, deviations, strict=True)
                    writer.writerows((group.label, name, *row) for row in rows)
                bits = zip(group.bit_steps, group.bits, strict=True)
                writer.writerows((group.label, "bits", step, value, "") for step, value in bits)


def _write_csv(groups: "list[RunGroup]", path: Path) -> None:
    with out.writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("group", "run", "seed", groups[0].metric.name, "gbitops", "seconds"))
        for group in groups:
            for run in group.runs:
                cost, seconds = run.report.cost["gbitops"], run.report.seconds["training"]
                writer.writerow((group.label, run.path, run.seed, run.figure, cost, seconds))


COMMAND = Command(
    compare,
    "cpt compare runs/static8 runs/cpt38",
    "cpt compare runs/static8-seed* runs/cpt38-seed* --plot compare.svg --csv compare.csv",
    "cpt compare runs/static8-seed* runs/cpt38-seed* --curves curves.svg  # with bands, and the bits",
)
