"""Plot precision schedules: bits over the steps of a run, one small panel per schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.report.figures import GREEN, GREY, new_figure

COLUMNS = 3


@dataclass(frozen=True)
class DrawnSchedule:
    """One schedule of a plot.

    Args:
        title: Title of its panel.
        bits: Bits of every step.
    """

    title: str
    bits: Sequence[int]


def plot_schedules(drawn: Sequence[DrawnSchedule], destination: Path) -> None:
    """Draw schedules side by side, with the same axes.

    Args:
        drawn: The schedules, one or more.
        destination: The file to write, PNG or SVG by its suffix.

    Raises:
        ValueError: If Matplotlib does not support the format.
    """
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(3.6 * columns, 1.9 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lowest = min(min(schedule.bits) for schedule in drawn)
    highest = max(max(schedule.bits) for schedule in drawn)
    for axes, schedule in zip(grid.flat, drawn, strict=False):
        axes.step(range(len(schedule.bits)), schedule.bits, where="post", color=GREEN, linewidth=1.1)
        axes.fill_between(range(len(schedule.bits)), schedule.bits, step="post", color=GREEN, alpha=0.12, linewidth=0)
        axes.set_title(schedule.title, fontsize=9)
        axes.set_ylim(0, highest + 0.8)
        axes.set_xlim(0, max(len(other.bits) for other in drawn))
        axes.yaxis.set_ticks(sorted({lowest, highest}))
        axes.grid(visible=True, axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(drawn) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("bits", fontsize=9)
    figure.savefig(destination, dpi=130)
