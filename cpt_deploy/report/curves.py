"""Draw `curves.png`: loss, the task's metric, and bits over the steps of a run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.metric import ACCURACY, PERPLEXITY, Metric
from cpt_deploy.report.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    fit,
    grids,
    line_style,
    new_figure,
    picture,
    save,
    whole_numbers,
)
from cpt_deploy.report.labels import legend_below, title_above

_TRAIN, _TEST, _FORWARD, _BACKWARD = BLUE, ORANGE, GREEN, PINK
_MANY_STEPS = 20000

Points = tuple[list[float], list[float]]


@picture
def plot_curves(
    metrics: Path,
    destination: Path,
    *,
    metric: Metric = ACCURACY,
    held_out: str = "test",
    title: str = "",
    bits: Sequence[int] | None = None,
    grad_bits: Sequence[int] | None = None,
) -> Any:
    """Draw the curves of a run from its `metrics.csv`.

    Args:
        metrics: The file, with the columns step, loss, bits, grad_bits, test_loss, calibrated, and of the metric
            ("accuracy" if batches of training have it, and "test_accuracy").
        destination: The PNG file to write.
        metric: The task's metric.
        held_out: Name of the split that evaluations are on.
        title: Title of the plot.
        bits: Forward bits of every step of the run; if None, those of the logged steps are drawn.
        grad_bits: Gradient bits of every step, likewise.
    """
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = new_figure(9, 8)
    loss, figures, precision = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    title_above(figure, title)
    fit(loss, _draw(loss, rows, "loss", held_out, 1.0))
    loss.set_ylabel("loss")
    values = _draw(figures, rows, metric.name, held_out, metric.scale)
    fit(figures, values, log=metric == PERPLEXITY)
    _say_final(figures, rows, metric)
    figures.set_ylabel(metric.axis)
    _draw_bits(precision, rows, bits, grad_bits)
    precision.set_xlim(0, max(1, precision.get_xlim()[1]))
    grids(loss, figures, precision)
    legend_below(figure, loss, precision)
    return save(figure, destination)


def _draw(axes: Any, rows: list[dict[str, str]], column: str, held_out: str, scale: float) -> list[float]:
    """Draw a column of training batches as a line, of evaluations as points, of the one after calibration as a star.

    Returns the values that are drawn.
    """
    drawn: list[float] = []
    for name, chosen, label, style in (
        (column, rows, "training batches", {"color": _TRAIN, "linewidth": 1.2}),
        (
            f"test_{column}",
            [row for row in rows if not row["calibrated"]],
            f"{held_out}, at max_bits",
            {"color": _TEST, "linestyle": "--"},
        ),
        (
            f"test_{column}",
            [row for row in rows if row["calibrated"]],
            f"{held_out}, calibrated",
            {"color": _TEST, "linestyle": "", "marker": "*", "markersize": 11},
        ),
    ):
        steps, values = _points(chosen, name)
        values = [scale * value for value in values]
        axes.plot(steps, values, label=label, **{**line_style(0, len(steps)), **style})
        drawn += values
    return drawn


def _say_final(axes: Any, rows: list[dict[str, str]], metric: Metric) -> None:
    """Write the metric of the calibrated model as the panel's title, where it covers no line."""
    _, values = _points([row for row in rows if row["calibrated"]], f"test_{metric.name}")
    if values:
        axes.set_title(f"calibrated: {metric.text(values[-1])}", loc="right")


def _draw_bits(
    axes: Any, rows: list[dict[str, str]], bits: Sequence[int] | None, grad_bits: Sequence[int] | None
) -> None:
    highest = 1.0
    for column, values, color, style, label in (
        ("bits", bits, _FORWARD, "-", "bits of weights and activations"),
        ("grad_bits", grad_bits, _BACKWARD, "--", "bits of gradients"),
    ):
        steps, heights = _points(rows, column) if values is None else _thinned(values)
        drawn = {**line_style(0, len(steps)), "color": color, "linestyle": style}
        axes.plot(steps, heights, drawstyle="steps-post", linewidth=1.2, label=label, **drawn)
        highest = max([highest, *heights])
    axes.set_ylabel("bits")
    axes.set_xlabel("step")
    whole_numbers(axes)
    whole_numbers(axes, "x")
    axes.set_ylim(0, 1.08 * highest)


def _points(rows: list[dict[str, str]], column: str) -> Points:
    """Return steps and values of the rows that have a value in the column."""
    filled = [row for row in rows if row.get(column)]
    return [float(row["step"]) for row in filled], [float(row[column]) for row in filled]


def _thinned(values: Sequence[int]) -> Points:
    """Return the bits of every step, or only of the steps where they change in a long run, up to the end of the last.

    Logged steps count finished steps, so that the bits of step 0 are drawn from 0 to 1.
    """
    if len(values) <= _MANY_STEPS:
        return [float(step) for step in range(len(values) + 1)], [float(value) for value in [*values, *values[-1:]]]
    changes = [step for step, value in enumerate(values) if step == 0 or value != values[step - 1]]
    heights = [values[step] for step in [*changes, -1]]
    return [float(step) for step in [*changes, len(values)]], [float(height) for height in heights]
