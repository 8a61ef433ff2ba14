"""Plot the loss around minima: planes side by side with shared levels and colours, or lines in one plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt_deploy.report.figures import fit, grids, line_style, new_figure, picture, save
from cpt_deploy.report.labels import hide_overlapping, legend_below, title_above, wrapped

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


@picture
def plot_landscapes(panels: Sequence[LandscapePanel], destination: Path, *, title: str = "") -> Any:
    """Draw planes as contours, or lines; all panels share levels, colours and axes.

    Args:
        panels: One or more minima on the same kind of grid.
        destination: The file to write, PNG or SVG by its suffix.
        title: Title of the plot.
    """
    figure = _lines(panels) if len(panels[0].losses) == 1 else _planes(panels)
    title_above(figure, title)
    return save(figure, destination)


def _planes(panels: Sequence[LandscapePanel]) -> Any:
    from matplotlib.colors import LogNorm

    losses = np.ma.masked_invalid([panel.losses for panel in panels])
    highest = max(float(losses.max()) if losses.count() else 1.0, 1e-9)
    levels = np.geomspace(min(max(float(losses.min() or 0), _MIN_SHARE * highest), highest / 1.01), highest, _LEVELS)
    columns = min(len(panels), _PER_ROW)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns + 1, 4.1 * rows + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn: Any = None
    labels: list[Any] = []
    for axes, panel, own in zip(grid.flat, panels, losses, strict=False):
        ticks, norm = np.asarray(panel.ticks), LogNorm(levels[0], levels[-1])
        drawn = axes.contourf(ticks, ticks, np.ma.maximum(own, levels[0]), levels, norm=norm, cmap="cividis")
        inner = [level for level in levels[1:-1:2] if own.count() and own.min() < level < own.max()]
        if inner:
            lines = axes.contour(ticks, ticks, own, inner, colors="black", linewidths=0.6, alpha=0.7)
            labels += axes.clabel(lines, fontsize=7, fmt="%.2g")
        if own.count() < own.size:
            axes.set_facecolor("#dddddd")
            axes.set_xlabel(f"grey: {own.size - own.count()} of {own.size} losses are not finite")
        axes.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=9)
        axes.set_title(wrapped(panel.label, 34))
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("\n".join(filter(None, ("first direction", axes.get_xlabel()))))
    for axes in grid[:, 0]:
        axes.set_ylabel("second direction")
    ticks = levels[::2] if levels[-1] > 1.1 * levels[0] else levels[-1:]  # labels of two digits would be equal
    bar = figure.colorbar(drawn, ax=grid, ticks=ticks, format="%.2g")
    bar.ax.minorticks_off()
    bar.set_label("loss")
    hide_overlapping(labels)
    return figure


def _lines(panels: Sequence[LandscapePanel]) -> Any:
    figure = new_figure(9, 4)
    loss, accuracy = figure.subplots(1, 2)
    for index, panel in enumerate(panels):
        style = line_style(index, len(panel.ticks))
        loss.plot(panel.ticks, panel.losses[0], label=panel.label, **style)
        accuracy.plot(panel.ticks, [100 * value for value in panel.accuracies[0]], **style)
    fit(loss, [value for panel in panels for value in panel.losses[0]])
    fit(accuracy, [100 * value for panel in panels for value in panel.accuracies[0]])
    for axes, label in ((loss, "loss"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("multiple of the direction")
        axes.set_ylabel(label)
    grids(loss, accuracy)
    legend_below(figure, loss)
    return figure
