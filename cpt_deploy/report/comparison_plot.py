"""Accuracy against the cost of training: groups of runs as points, their seeds as error bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, new_figure

_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (GREY, "v"), ("#E69F00", "P"), ("#56B4E9", "X"))


@dataclass(frozen=True)
class ComparedGroup:
    """One point of the picture.

    Args:
        label: What the legend calls it.
        accuracies: Accuracy of each seed, 0 to 1.
        mean: Their mean.
        deviation: Their standard deviation; `None` with one.
        gbitops: Cost of a run in 10^9 BitOPs.
    """

    label: str
    accuracies: Sequence[float]
    mean: float
    deviation: float | None
    gbitops: float


def plot_comparison(groups: Sequence[ComparedGroup], destination: Path) -> None:
    """Draw the groups.

    Args:
        groups: One or more.
        destination: The file to write, PNG or SVG by its name.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    figure = new_figure(8.5, 5)
    axes = figure.subplots()
    for index, group in enumerate(groups):
        colour, marker = _STYLES[index % len(_STYLES)]
        seeds = [100 * accuracy for accuracy in group.accuracies]
        if len(seeds) > 1:
            axes.plot([group.gbitops] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=5)
        axes.errorbar(
            group.gbitops,
            100 * group.mean,
            yerr=None if group.deviation is None else 100 * group.deviation,
            color=colour,
            marker=marker,
            markersize=7,
            capsize=4,
            linestyle="",
            label=group.label,
        )
    axes.set_xlim(0, 1.12 * max(group.gbitops for group in groups))
    axes.set_xlabel("GBitOPs of training")
    axes.set_ylabel("test accuracy (%), mean ± standard deviation of the seeds")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(destination, dpi=130)
