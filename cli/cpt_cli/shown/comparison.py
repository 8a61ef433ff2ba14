"""The table of finished runs of `cpt compare` and `cpt train-grid`."""

import statistics
from typing import TYPE_CHECKING, Any

from cpt_cli.output import out
from cpt_deploy import readable
from cpt_deploy.metric import Metric

if TYPE_CHECKING:
    from cpt_deploy.training import RunGroup

_HEADINGS = ("differs in", "GBitOPs", "of the first", "time")
_NAMED = 5
"""Settings that are named in the note on further differences."""


def show_groups(groups: "list[RunGroup]") -> list[dict[str, Any]]:
    """Print a table with one line per group, and return its figures as JSON types."""
    entries = [_entry(group, groups[0]) for group in groups]
    for one in groups:
        for run in one.repeated:
            same = readable.path(next(other.path for other in one.runs if other.seed == run.seed))
            out.warning(f"{readable.path(run.path)} has the settings and the seed of {same} and is not counted")
    metric = groups[0].metric
    difference = "against the first, points" if metric.percent else "against the first"
    named = ("label",) if len(groups) > 1 else ()
    out.table(
        ("run", *_HEADINGS[: len(named)], "seeds", metric.title, "± s.d.", difference, *_HEADINGS[1:]),
        [(entry["name"], *(entry[key] for key in named), *_figures(entry, entries[0], metric)) for entry in entries],
        optional=("of the first", "time", "± s.d."),
    )
    if unnamed := groups[0].unnamed:
        more = f" and {len(unnamed) - _NAMED} more settings" if len(unnamed) > _NAMED else ""
        out.note(f"they also differ in {', '.join(unnamed[:_NAMED])}{more}; see recipe.yaml of each run")
    return entries


def _entry(group: "RunGroup", reference: "RunGroup") -> dict[str, Any]:
    differences = [] if group is reference else list(group.paired_differences(reference))
    return {
        "name": group.name,
        "label": group.label,
        "runs": [run.path for run in group.runs],
        "not_counted": [run.path for run in group.repeated],
        "seeds": [run.seed for run in group.runs],
        "metric": group.metric.to_dict(),
        "figures": list(group.figures),
        "mean": group.mean,
        "deviation": group.deviation,
        "paired_differences": differences,
        "gbitops": group.gbitops,
        "seconds": group.seconds,
    }


def _figures(entry: dict[str, Any], reference: dict[str, Any], metric: Metric) -> tuple[object, ...]:
    scale = metric.scale
    differences = [scale * value for value in entry["paired_differences"]]
    difference = ""
    if differences:
        spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
        difference = f"{statistics.fmean(differences):+.2f}{spread}"
    deviation = "" if entry["deviation"] is None else f"{scale * entry['deviation']:.2f}"
    return (
        len(entry["seeds"]),
        metric.text(entry["mean"]),
        deviation,
        difference,
        f"{entry['gbitops']:,.0f}",
        readable.share(entry["gbitops"] / reference["gbitops"]),
        readable.duration(entry["seconds"]),
    )
