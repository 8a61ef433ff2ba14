"""Plot a metric against the cost of training: groups of runs as points, with error bars over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, new_figure, plain

_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (GREY, "v"), (YELLOW, "P"), (SKY, "X"))


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


def plot_comparison(groups: Sequence[ComparedGroup], destination: Path) -> None:
    """Draw groups of runs.

    Args:
        groups: One or more groups.
        destination: The file to write, PNG or SVG by its suffix.
    """
    figure = new_figure(8.5, 5)
    axes = figure.subplots()
    metric = groups[0].metric
    scale = metric.scale
    for index, group in enumerate(groups):
        colour, marker = _STYLES[index % len(_STYLES)]
        seeds = [scale * value for value in group.figures]
        if len(seeds) > 1:
            axes.plot([group.gbitops] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=5)
        axes.errorbar(
            group.gbitops,
            fmean(seeds),
            yerr=stdev(seeds) if len(seeds) > 1 else None,
            color=colour,
            marker=marker,
            markersize=7,
            capsize=4,
            linestyle="",
            label=group.label,
        )
    axes.set_xlim(0, 1.12 * max(group.gbitops for group in groups))
    axes.set_xlabel("GBitOPs of training")
    axes.set_ylabel(f"test {metric.axis}, mean ± standard deviation of the seeds")
    plain(axes)
    axes.legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(destination, dpi=130)
