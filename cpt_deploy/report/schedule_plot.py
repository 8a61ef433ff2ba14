"""Plot precision schedules: bits over the steps of a run, one small panel per schedule."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpt_deploy.report.figures import GREEN, GREY, new_figure

COLUMNS = 3


def plot_schedules(drawn: Mapping[str, Sequence[int]], destination: Path) -> None:
    """Draw schedules side by side, with the same axes.

    Args:
        drawn: The bits of every step of one or more schedules, by the title of their panel.
        destination: The file to write, PNG or SVG by its suffix.

    Raises:
        ValueError: If Matplotlib does not support the format.
    """
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(3.6 * columns, 1.9 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lowest = min(map(min, drawn.values()))
    highest = max(map(max, drawn.values()))
    for axes, (title, bits) in zip(grid.flat, drawn.items(), strict=False):
        axes.step(range(len(bits)), bits, where="post", color=GREEN, linewidth=1.1)
        axes.fill_between(range(len(bits)), bits, step="post", color=GREEN, alpha=0.12, linewidth=0)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, highest + 0.8)
        axes.set_xlim(0, max(map(len, drawn.values())))
        axes.yaxis.set_ticks(sorted({lowest, highest}))
        axes.grid(visible=True, axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(drawn) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("bits", fontsize=9)
    figure.savefig(destination, dpi=130)
