"""`cpt compare`: finished runs beside each other, accuracy against the cost of training."""

import csv
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import TRAIN_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.training import RunGroup


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories that cpt train wrote; the first is the reference.")],
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against BitOPs into this PNG or SVG file.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Write a line for each run to this file.")] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compare finished runs: accuracy, its spread over seeds, BitOPs, and time.

    Runs that differ by their seed alone are one group. Differences are paired: each run against the reference's run of
    the same seed.
    """
    from cpt_deploy.training import group_runs, read_finished_run

    groups = group_runs([read_finished_run(run) for run in dict.fromkeys(runs)])
    entries = [_entry(group, groups[0]) for group in groups]
    out.table(
        ("runs", "seeds", "accuracy", "± s.d.", "against the first, points", "GBitOPs", "of the first", "time"),
        [_row(entry, entries[0]) for entry in entries],
    )
    if plot is not None:
        _draw(groups, plot)
    if table is not None:
        _write_csv(groups, table)
    out.result({"groups": entries})


def _entry(group: "RunGroup", reference: "RunGroup") -> dict[str, Any]:
    differences = [] if group is reference else list(group.paired_differences(reference))
    return {
        "label": group.label,
        "runs": [run.path for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "accuracies": list(group.accuracies),
        "mean": group.mean,
        "deviation": group.deviation,
        "paired_differences": differences,
        "gbitops": group.gbitops,
        "seconds": group.seconds,
    }


def _row(entry: dict[str, Any], reference: dict[str, Any]) -> tuple[object, ...]:
    differences = [100 * value for value in entry["paired_differences"]]
    difference = ""
    if differences:
        spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
        difference = f"{statistics.fmean(differences):+.2f}{spread}"
    deviation = "" if entry["deviation"] is None else f"{100 * entry['deviation']:.2f}"
    return (
        entry["label"],
        len(entry["seeds"]),
        formats.share(entry["mean"]),
        deviation,
        difference,
        f"{entry['gbitops']:,.0f}",
        formats.share(entry["gbitops"] / reference["gbitops"]),
        formats.duration(entry["seconds"]),
    )


def _draw(groups: "list[RunGroup]", plot: Path) -> None:
    from cpt_deploy.report import ComparedGroup, check_plot_path, plot_comparison

    check_plot_path(plot)
    points = [ComparedGroup(g.label, g.accuracies, g.mean, g.deviation, g.gbitops) for g in groups]
    try:
        plot_comparison(points, plot)
    except OSError as error:
        raise UsageError(f"Expected to write {formats.path(plot)}, but got: {error.strerror or error}") from error
    out.note(f"wrote {formats.path(plot)}")


def _write_csv(groups: "list[RunGroup]", path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("group", "run", "seed", "accuracy", "gbitops", "seconds"))
            for group in groups:
                for run in group.runs:
                    cost, seconds = run.report.cost["gbitops"], run.report.seconds["training"]
                    writer.writerow((group.label, run.path, run.seed, run.accuracy, cost, seconds))
    except OSError as error:
        raise UsageError(f"Expected to write {formats.path(path)}, but got: {error.strerror or error}") from error
    out.note(f"wrote {formats.path(path)}")


COMMAND = Command(
    name="compare",
    function=compare,
    panel=TRAIN_PANEL,
    examples=(
        "cpt compare runs/static8 runs/cpt38",
        "cpt compare runs/static8-seed* runs/cpt38-seed* --plot compare.svg --csv compare.csv",
    ),
)
