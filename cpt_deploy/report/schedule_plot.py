"""Plot precision schedules: bits over the steps of a run, one small panel per schedule."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import GREEN, grids, new_figure, picture, save, whole_numbers
from cpt_deploy.report.labels import title_above, wrapped

COLUMNS = 3


@picture
def plot_schedules(drawn: Mapping[str, Sequence[int]], destination: Path, *, title: str = "") -> Any:
    """Draw schedules side by side, with the same axes.

    Args:
        drawn: The bits of every step of one or more schedules, by the title of their panel.
        destination: The file to write, PNG or SVG by its suffix.
        title: Title of the plot.
    """
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(max(5.0, 3.6 * columns), 2.0 * rows + 0.5)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    highest, longest = max(map(max, drawn.values())), max(map(len, drawn.values()))
    for axes, (name, bits) in zip(grid.flat, drawn.items(), strict=False):
        # the last value once more, so that its step is as wide as the others
        steps, heights = range(len(bits) + 1), [*bits, bits[-1]]
        axes.step(steps, heights, where="post", color=GREEN, linewidth=1.1)
        axes.fill_between(steps, heights, step="post", color=GREEN, alpha=0.12, linewidth=0)
        axes.set_title(wrapped(name, 40, 2))
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.locator_params(axis="x", nbins=5)
        grids(axes, axis="y")
    grid[0, 0].set_ylim(0, highest + 0.8)
    grid[0, 0].set_xlim(0, longest)
    whole_numbers(grid[0, 0])
    whole_numbers(grid[0, 0], "x")
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    title_above(figure, title)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("bits", fontsize=9)
    return save(figure, destination)
