"""Draw `sweep.png`: quality of a run's exports against their size and their latency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import GREY, fit, grids, new_figure, picture, point_style, save
from cpt_deploy.report.labels import label_points, legend_below, title_above


@dataclass(frozen=True)
class SweepPoint:
    """One export of a run.

    Args:
        label: Label of its point.
        series: Its series in the legend.
        quality: Its quality (the y axis), measured in onnxruntime.
        low: Lower end of the quality's interval.
        high: Upper end of the quality's interval.
        kilobytes: Size.
        milliseconds: Latency.
    """

    label: str
    series: str
    quality: float
    low: float
    high: float
    kilobytes: float
    milliseconds: float


@picture
def plot_sweep(
    points: Sequence[SweepPoint],
    destination: Path,
    *,
    title: str,
    size_label: str,
    quality_label: str,
    latency_label: str,
    trained: float | None = None,
) -> Any:
    """Draw quality against size and against latency.

    Args:
        points: The exports.
        destination: The PNG file to write.
        title: Title of the plot.
        size_label: The files whose size is drawn.
        quality_label: Name of the quality, with its unit.
        latency_label: The setting in which the latency was measured.
        trained: Quality of the trained model at max_bits, drawn as a line.
    """
    figure = new_figure(10, 4.5)
    panels = figure.subplots(1, 2, sharey=True)
    title_above(figure, title)
    for axes, column in zip(panels, ("kilobytes", "milliseconds"), strict=True):
        _draw(axes, points, column, trained)
    panels[0].set_ylabel(quality_label)
    panels[0].set_xlabel(f"{size_label} (kB)")
    panels[1].set_xlabel(f"latency (ms), {latency_label}")
    drawn = [(point.quality, (point.low, point.high)) for point in points]
    drawn += [] if trained is None else [(trained, (trained, trained))]
    fit(panels[0], [quality for quality, _ in drawn], reaches=[ends for _, ends in drawn])
    grids(*panels)
    legend_below(figure, panels[0], title="numbers: bits of the weights")
    series = _series(points)
    for axes, column in zip(panels, ("kilobytes", "milliseconds"), strict=True):
        shown = [(p, point_style(series.index(p.series))["color"]) for p in points if math.isfinite(p.quality)]
        label_points(axes, [(p.label, (getattr(p, column), p.quality), colour) for p, colour in shown])
    return save(figure, destination)


def _series(points: Sequence[SweepPoint]) -> list[str]:
    return list(dict.fromkeys(point.series for point in points))


def _draw(axes: Any, points: Sequence[SweepPoint], column: str, trained: float | None) -> None:
    if trained is not None:
        axes.axhline(trained, color=GREY, linestyle="--", linewidth=1, label="trained model")
    for index, series in enumerate(_series(points)):
        own = [point for point in points if point.series == series]
        x = [getattr(point, column) for point in own]
        y = [point.quality for point in own]
        errors = [[point.quality - point.low for point in own], [point.high - point.quality for point in own]]
        axes.errorbar(x, y, errors, capsize=3, linewidth=1, label=series, **point_style(index))
    # from 0 on, or a percent of noise would look like a difference
    fit(axes, [getattr(point, column) for point in points], axis="x", zero=True)
