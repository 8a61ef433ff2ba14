"""Draw `curves.png`: loss, the task's metric, and bits over the steps of a run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.metric import ACCURACY, PERPLEXITY, Metric
from cpt_deploy.report.figures import BLUE, GREEN, ORANGE, PINK, new_figure, plain

_TRAIN, _TEST, _FORWARD, _BACKWARD = BLUE, ORANGE, GREEN, PINK
_MANY_STEPS = 20000

Points = tuple[list[float], list[float]]


def plot_curves(
    metrics: Path,
    destination: Path,
    *,
    metric: Metric = ACCURACY,
    held_out: str = "test",
    title: str = "",
    bits: Sequence[int] | None = None,
    grad_bits: Sequence[int] | None = None,
) -> None:
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
    figure.suptitle(title)
    _draw_loss(loss, rows, held_out)
    _draw_metric(figures, rows, metric, held_out)
    _draw_bits(precision, rows, bits, grad_bits)
    plain(loss, figures, precision)
    figure.savefig(destination, dpi=120)


def _draw_loss(axes: Any, rows: list[dict[str, str]], held_out: str) -> None:
    axes.plot(*_points(rows, "loss"), color=_TRAIN, linewidth=1.2, label="training batches")
    _draw_test(axes, rows, "test_loss", scale=1.0, name=held_out)
    axes.set_ylabel("loss")
    axes.legend(loc="best", frameon=False)


def _draw_metric(axes: Any, rows: list[dict[str, str]], metric: Metric, held_out: str) -> None:
    steps, values = _points(rows, metric.name)
    if values:
        axes.plot(
            steps, [metric.scale * value for value in values], color=_TRAIN, linewidth=1.2, label="training batches"
        )
    final = _draw_test(axes, rows, f"test_{metric.name}", scale=metric.scale, name=held_out)
    if final is not None:
        below = (-8, -16) if metric.higher_is_better else (-8, 8)
        shown = metric.text(final[1] / metric.scale)
        axes.annotate(shown, final, below, textcoords="offset points", ha="right")
    if metric == PERPLEXITY:
        _decades(axes)
    axes.set_ylabel(metric.axis)
    axes.legend(loc="best", frameon=False)


def _decades(axes: Any) -> None:
    """Use a logarithmic axis with labels at 1, 2 and 5 of each decade; at equal distances if there are few of these."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _draw_test(
    axes: Any, rows: list[dict[str, str]], column: str, *, scale: float, name: str = "test"
) -> tuple[float, float] | None:
    """Draw evaluations during training as a line, the one after calibration as a star; return the star's position."""
    steps, values = _points([row for row in rows if not row["calibrated"]], column)
    style = {"color": _TEST, "linestyle": "--", "marker": "o", "markersize": 4}
    axes.plot(steps, [scale * value for value in values], label=f"{name}, at max_bits", **style)
    steps, values = _points([row for row in rows if row["calibrated"]], column)
    if not values:
        return None
    final = steps[-1], scale * values[-1]
    axes.plot(
        *([value] for value in final), color=_TEST, marker="*", markersize=11, linestyle="", label=f"{name}, calibrated"
    )
    return final


def _draw_bits(
    axes: Any, rows: list[dict[str, str]], bits: Sequence[int] | None, grad_bits: Sequence[int] | None
) -> None:
    for column, values, color, style, label in (
        ("bits", bits, _FORWARD, "-", "weights and activations"),
        ("grad_bits", grad_bits, _BACKWARD, "--", "gradients"),
    ):
        steps, heights = _points(rows, column) if values is None else _thinned(values)
        axes.plot(steps, heights, color=color, linestyle=style, drawstyle="steps-post", linewidth=1.2, label=label)
    axes.set_ylabel("bits")
    axes.set_xlabel("step")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False, ncols=2)


def _points(rows: list[dict[str, str]], column: str) -> Points:
    """Return steps and values of the rows that have a value in the column."""
    filled = [row for row in rows if row.get(column)]
    return [float(row["step"]) for row in filled], [float(row[column]) for row in filled]


def _thinned(values: Sequence[int]) -> Points:
    """Return the bits of every step, or only of the steps where they change in a long run."""
    if len(values) <= _MANY_STEPS:
        return [float(step) for step in range(len(values))], [float(value) for value in values]
    changes = [step for step, value in enumerate(values) if step == 0 or value != values[step - 1]]
    steps = [*changes, len(values) - 1]
    return [float(step) for step in steps], [float(values[step]) for step in steps]
