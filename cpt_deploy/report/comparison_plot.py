"""Plot a metric against the cost of training: groups of runs as points, with error bars over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.report.figures import fit, grids, new_figure, picture, point_style, save
from cpt_deploy.report.labels import legend_below, title_above


@dataclass(frozen=True)
class ComparedGroup:
    """One point of the plot.

    Args:
        label: Its name in the legend.
        figures: Value of the metric for each seed.
        gbitops: Cost of a run in 10^9 BitOPs.
        metric: The metric; the same for all groups of a plot.
    """

    label: str
    figures: Sequence[float]
    gbitops: float
    metric: Metric = ACCURACY


@picture
def plot_comparison(groups: Sequence[ComparedGroup], destination: Path) -> Any:
    """Draw groups of runs.

    Args:
        groups: One or more groups.
        destination: The file to write, PNG or SVG by its suffix.
    """
    figure = new_figure(8.5, 5)
    axes = figure.subplots()
    metric = groups[0].metric
    values: list[tuple[float, float, float]] = []
    for index, group in enumerate(groups):
        style = point_style(index)
        seeds = [metric.scale * value for value in group.figures]
        spread = stdev(seeds) if len(seeds) > 1 and all(map(math.isfinite, seeds)) else None
        if len(seeds) > 1:
            axes.plot([group.gbitops] * len(seeds), seeds, ".", color=style["color"], alpha=0.45, markersize=5)
        axes.errorbar(group.gbitops, fmean(seeds), spread, capsize=4, label=group.label, **style)
        mean, width = fmean(seeds), spread or 0.0
        values.append((mean, min(mean - width, *seeds), max(mean + width, *seeds)))
    fit(axes, [group.gbitops for group in groups], axis="x", zero=True)
    fit(axes, [mean for mean, *_ in values], reaches=[(low, high) for _, low, high in values])
    axes.set_xlabel("cost of training (GBitOPs)")
    axes.set_ylabel(f"test {metric.axis}")
    seeds_shown = ", mean ± standard deviation of the seeds" if any(len(group.figures) > 1 for group in groups) else ""
    title_above(figure, f"{metric.heading} against the cost of training{seeds_shown}")
    grids(axes)
    legend_below(figure, axes)
    return save(figure, destination)
