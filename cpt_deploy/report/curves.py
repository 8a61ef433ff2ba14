"""Draw `curves.png`: loss, accuracy or perplexity, and bits over the steps of a run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import BLUE, GREEN, ORANGE, PINK, new_figure, plain

_TRAIN, _TEST, _FORWARD, _BACKWARD = BLUE, ORANGE, GREEN, PINK
_MANY_STEPS = 20000

Points = tuple[list[float], list[float]]


def plot_curves(
    metrics: Path,
    destination: Path,
    *,
    title: str = "",
    bits: Sequence[int] | None = None,
    grad_bits: Sequence[int] | None = None,
) -> None:
    """Draw the curves of a run from its `metrics.csv`.

    Args:
        metrics: The file, with the columns step, loss, accuracy, bits, grad_bits, test_loss, test_accuracy, calibrated;
            if perplexity or test_perplexity have values, they are drawn instead of accuracy.
        destination: The PNG file to write.
        title: Title of the plot.
        bits: Forward bits of every step of the run; if None, those of the logged steps are drawn.
        grad_bits: Gradient bits of every step, likewise.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
        OSError: If the file cannot be read or written.
    """
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = new_figure(9, 8)
    loss, accuracy, precision = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    figure.suptitle(title)
    held_out = "validation" if any(row.get("test_perplexity") for row in rows) else "test"
    _draw_loss(loss, rows, held_out)
    if any(row.get("test_perplexity") or row.get("perplexity") for row in rows):
        _draw_perplexity(accuracy, rows)
    else:
        _draw_accuracy(accuracy, rows)
    _draw_bits(precision, rows, bits, grad_bits)
    plain(loss, accuracy, precision)
    figure.savefig(destination, dpi=120)


def _draw_loss(axes: Any, rows: list[dict[str, str]], held_out: str) -> None:
    axes.plot(*_points(rows, "loss"), color=_TRAIN, linewidth=1.2, label="training batches")
    _draw_test(axes, rows, "test_loss", scale=1.0, name=held_out)
    axes.set_ylabel("loss")
    axes.legend(loc="best", frameon=False)


def _draw_accuracy(axes: Any, rows: list[dict[str, str]]) -> None:
    steps, values = _points(rows, "accuracy")
    axes.plot(steps, [100 * value for value in values], color=_TRAIN, linewidth=1.2, label="training batches")
    final = _draw_test(axes, rows, "test_accuracy", scale=100.0)
    if final is not None:
        axes.annotate(f"{final[1]:.2f} %", final, (-8, -16), textcoords="offset points", ha="right")
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="best", frameon=False)


def _draw_perplexity(axes: Any, rows: list[dict[str, str]]) -> None:
    from matplotlib.ticker import LogLocator

    axes.plot(*_points(rows, "perplexity"), color=_TRAIN, linewidth=1.2, label="training batches")
    final = _draw_test(axes, rows, "test_perplexity", scale=1.0, name="validation")
    if final is not None:
        axes.annotate(f"{final[1]:.2f}", final, (-8, 8), textcoords="offset points", ha="right")
    axes.set_yscale("log")
    # Labels at 1, 2 and 5 of each decade; in a range with fewer than two of these, at equal distances.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_ylabel("perplexity")
    axes.legend(loc="best", frameon=False)


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
