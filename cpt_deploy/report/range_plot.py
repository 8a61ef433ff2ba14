"""Plot the result of a precision range test: training accuracy over the steps at each bit-width."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    fit,
    line_style,
    new_figure,
    picture,
    save,
    whole_numbers,
)
from cpt_deploy.report.labels import legend_below, title_above


@picture
def plot_range_test(outcome: Mapping[str, Any], destination: Path, *, title: str = "") -> Any:
    """Draw a range test.

    Args:
        outcome: The fields of `RangeTest.to_dict`.
        destination: The PNG file to write.
        title: Title of the plot.
    """
    entries = outcome["precisions"]
    figure = new_figure(max(6.5, 1.2 * len(entries) + 1), 4)
    axes = figure.subplots()
    start, steps = 0, max(1, *(len(entry["accuracy"]) for entry in entries))
    for entry in entries:
        accuracy = [100 * value for value in entry["accuracy"]]
        end = start + steps  # a run that diverged has fewer steps
        found = entry["bits"] == outcome["min_bits"]
        axes.axvspan(start, end, color=GREEN if found else GREY, alpha=0.14 if found else 0.05, linewidth=0)
        style = {**line_style(0, len(accuracy)), "color": BLUE, "alpha": 0.45}
        axes.plot(range(start, start + len(accuracy)), accuracy, linewidth=0.7, **style)
        width = max(1, round(len(accuracy) / 4))
        if not entry["diverged"]:
            axes.hlines(100 * entry["before"], start, start + width, color=ORANGE, linewidth=2)
            axes.hlines(100 * entry["after"], end - width, end, color=ORANGE, linewidth=2)
        said = f"{100 * entry['rise']:+.1f} points"
        if entry["diverged"]:
            said = f"diverged,\nstep {len(accuracy) + 1}"
        axes.annotate(
            f"{entry['bits']} bits\n{said}",
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontweight="bold" if found else "normal",
        )
        start = end
    axes.set_xlim(0, start)
    fit(axes, [100 * value for entry in entries for value in entry["accuracy"]], zero=True)
    whole_numbers(axes, "x")
    axes.set_xlabel("step")
    axes.set_ylabel("training accuracy (%)")
    axes.plot([], [], color=ORANGE, linewidth=2, label="mean of the first and of the last steps")
    title_above(figure, title)
    legend_below(figure, axes)
    return save(figure, destination)
