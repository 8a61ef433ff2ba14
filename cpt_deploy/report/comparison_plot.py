"""Plot a metric against the cost of training: groups of runs as points, with error bars over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, new_figure

_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (GREY, "v"), ("#E69F00", "P"), ("#56B4E9", "X"))


@dataclass(frozen=True)
class ComparedGroup:
    """One point of the plot.

    Args:
        label: Its name in the legend.
        figures: Value of the metric for each seed.
        mean: Their mean.
        deviation: Their standard deviation; `None` with one.
        gbitops: Cost of a run in 10^9 BitOPs.
        metric: The metric; the same for all groups of a plot.
    """

    label: str
    figures: Sequence[float]
    mean: float
    deviation: float | None
    gbitops: float
    metric: Metric = ACCURACY


def plot_comparison(groups: Sequence[ComparedGroup], destination: Path) -> None:
    """Draw groups of runs.

    Args:
        groups: One or more groups.
        destination: The file to write, PNG or SVG by its suffix.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
        OSError: If the file cannot be written.
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
            scale * group.mean,
            yerr=None if group.deviation is None else scale * group.deviation,
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
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(destination, dpi=130)
