"""Draw `sweep.png`: quality of a run's exports against their size and their latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import BLUE, GREEN, ORANGE, PINK, YELLOW, new_figure, plain

_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"), (YELLOW, "v"))


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


def plot_sweep(
    points: Sequence[SweepPoint],
    destination: Path,
    *,
    title: str,
    size_label: str,
    quality_label: str,
    latency_label: str,
    trained: float | None = None,
) -> None:
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
    size, latency = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    for axes, column in ((size, "kilobytes"), (latency, "milliseconds")):
        _draw(axes, points, column, trained)
    size.set_ylabel(quality_label)
    size.set_xlabel(f"{size_label} (kB)")
    latency.set_xlabel(f"latency (ms), {latency_label}")
    handles, labels = size.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(destination, dpi=120)


def _draw(axes: Any, points: Sequence[SweepPoint], column: str, trained: float | None) -> None:
    if trained is not None:
        axes.axhline(trained, color="#555555", linestyle="--", linewidth=1, label="trained model")
    for index, series in enumerate(dict.fromkeys(point.series for point in points)):
        color, marker = _STYLES[index % len(_STYLES)]
        own = [point for point in points if point.series == series]
        x = [getattr(point, column) for point in own]
        y = [point.quality for point in own]
        errors = [[point.quality - point.low for point in own], [point.high - point.quality for point in own]]
        axes.errorbar(x, y, errors, color=color, marker=marker, linestyle="", capsize=3, linewidth=1, label=series)
        for point, position in zip(own, zip(x, y, strict=True), strict=True):
            side = (6, 5) if index % 2 == 0 else (6, -11)
            axes.annotate(point.label, position, side, textcoords="offset points", fontsize=8, color=color)
    # from 0 on, or a percent of noise would look like a difference
    axes.set_xlim(0.0, 1.2 * max(getattr(point, column) for point in points))
    plain(axes)
