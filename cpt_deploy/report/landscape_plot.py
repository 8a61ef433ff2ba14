"""Plot the loss around minima: planes side by side with shared levels and colours, or lines in one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, new_figure, plain

_LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (GREY, "-"))
_LEVELS = 15
#: The lowest level is at least this share of the highest one; smaller differences would not be visible.
_MIN_SHARE = 1e-2
_PER_ROW = 3


@dataclass(frozen=True)
class LandscapePanel:
    """The loss around one minimum.

    Args:
        label: Title of the panel.
        ticks: The multiples of the directions, ascending.
        losses: Mean cross-entropy, one row per y; a single row for a line.
        accuracies: Accuracy, 0 to 1, in the same layout.
    """

    label: str
    ticks: Sequence[float]
    losses: Sequence[Sequence[float]]
    accuracies: Sequence[Sequence[float]]


def plot_landscapes(panels: Sequence[LandscapePanel], destination: Path, *, title: str = "") -> None:
    """Draw planes as contours, or lines; all panels share levels, colours and axes.

    Args:
        panels: One or more minima on the same kind of grid.
        destination: The file to write, PNG or SVG by its suffix.
        title: Title of the plot.
    """
    figure = _lines(panels) if len(panels[0].losses) == 1 else _planes(panels)
    figure.suptitle(title)
    figure.savefig(destination, dpi=130)


def _planes(panels: Sequence[LandscapePanel]) -> Any:
    from matplotlib.colors import LogNorm

    lowest = min(min(map(min, panel.losses)) for panel in panels)
    highest = max(max(map(max, panel.losses)) for panel in panels)
    lowest = max(lowest, _MIN_SHARE * highest)
    levels = np.geomspace(lowest, max(highest, lowest * 1.01), _LEVELS)
    columns = min(len(panels), _PER_ROW)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns + 1, 4.1 * rows + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn: Any = None
    for axes, panel in zip(grid.flat, panels, strict=False):
        ticks, losses = np.asarray(panel.ticks), np.asarray(panel.losses)
        norm = LogNorm(levels[0], levels[-1])
        drawn = axes.contourf(ticks, ticks, losses, levels, norm=norm, cmap="cividis", extend="min")
        lines = axes.contour(ticks, ticks, losses, levels[1:-1:2], colors="black", linewidths=0.6, alpha=0.7)
        axes.clabel(lines, fontsize=7, fmt="%.2g")
        axes.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=9)
        axes.set_title(panel.label, fontsize=10)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("first direction")
    for axes in grid[:, 0]:
        axes.set_ylabel("second direction")
    bar = figure.colorbar(drawn, ax=grid, ticks=levels[::2], format="%.2g")
    bar.ax.minorticks_off()
    bar.set_label("loss")
    return figure


def _lines(panels: Sequence[LandscapePanel]) -> Any:
    figure = new_figure(9, 4)
    loss, accuracy = figure.subplots(1, 2)
    for index, panel in enumerate(panels):
        colour, style = _LINES[index % len(_LINES)]
        loss.plot(panel.ticks, panel.losses[0], style, color=colour, label=panel.label)
        accuracy.plot(panel.ticks, [100 * value for value in panel.accuracies[0]], style, color=colour)
    for axes, label in ((loss, "loss"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("direction")
        axes.set_ylabel(label)
    plain(loss, accuracy)
    loss.legend(loc="upper center", frameon=False)
    return figure
