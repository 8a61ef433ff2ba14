"""Plot the result of a precision range test: training accuracy over the steps at each bit-width."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import BLUE, GREEN, GREY, ORANGE, new_figure


def plot_range_test(outcome: Mapping[str, Any], destination: Path, *, title: str = "") -> None:
    """Draw a range test.

    Args:
        outcome: The fields of `RangeTest.to_dict`.
        destination: The PNG file to write.
        title: Title of the plot.
    """
    figure = new_figure(9, 4)
    axes = figure.subplots()
    start, steps = 0, max(len(entry["accuracy"]) for entry in outcome["precisions"])
    for entry in outcome["precisions"]:
        accuracy = [100 * value for value in entry["accuracy"]]
        end = start + steps  # a run that diverged has fewer steps
        found = entry["bits"] == outcome["min_bits"]
        axes.axvspan(start, end, color=GREEN if found else GREY, alpha=0.14 if found else 0.05, linewidth=0)
        axes.plot(range(start, start + len(accuracy)), accuracy, color=BLUE, linewidth=0.7, alpha=0.45)
        width = max(1, round(len(accuracy) / 4))
        if not entry["diverged"]:
            axes.hlines(100 * entry["before"], start, start + width, color=ORANGE, linewidth=2)
            axes.hlines(100 * entry["after"], end - width, end, color=ORANGE, linewidth=2)
        rise = f"{100 * entry['rise']:+.1f} points"
        label = f"{entry['bits']} bits\n{f'diverged, step {len(accuracy) + 1}' if entry['diverged'] else rise}"
        axes.annotate(
            label,
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontweight="bold" if found else "normal",
        )
        start = end
    axes.set_xlim(0, start)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("training accuracy (%)")
    axes.plot([], [], color=ORANGE, linewidth=2, label="mean of the first and of the last steps")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(destination, dpi=120)
