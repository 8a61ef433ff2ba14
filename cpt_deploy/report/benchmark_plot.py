"""The plot of `cpt benchmark`: time per row of each model, by batch size and threads."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.report.figures import BLUE, ORANGE, PINK, grids, limit, new_figure, picture, save
from cpt_deploy.report.labels import legend_below, title_above

_COLOURS = (ORANGE, "#b8b8b8", BLUE, PINK)
_MAX_WIDTH = 14.0
"""Inches of all panels in a row; further ones begin a new row."""
_TAIL = 2.0
"""A line to the 99th percentile is drawn up to this multiple of the highest bar."""


@picture
def plot_benchmark(report: Mapping[str, Any], destination: Path) -> Any:
    """Draw the median time per row, with a line up to the 99th percentile and the speed-up of the bundle.

    Args:
        report: The fields of a benchmark report (`BenchmarkReport.to_dict()`).
        destination: The PNG, SVG or PDF file to write.
    """
    latencies = report["latencies"]
    threads = list(dict.fromkeys(entry["threads"] for entry in latencies))
    models = list(dict.fromkeys(entry["model"] for entry in latencies))
    batches = list(dict.fromkeys(entry["batch"] for entry in latencies))
    panel_width = max(2.4, 0.5 + 0.42 * len(batches) * len(models))
    columns = max(1, min(len(threads), int(_MAX_WIDTH / panel_width)))
    rows = math.ceil(len(threads) / columns)
    figure = new_figure(max(5.6, 1.0 + columns * panel_width), 0.8 + 3.2 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = grid.flat
    heights = [entry["p50_ms"] / entry["batch"] for entry in latencies]
    limit(panels[0], "y", min(heights), max(heights), zero=True)
    for axes, count in zip(panels, threads, strict=False):
        chosen = [entry for entry in latencies if entry["threads"] == count]
        _draw(axes, chosen, models, batches, _TAIL * max(heights))
        axes.set_title(f"{count} thread{'s' if count > 1 else ''}")
    logarithmic = panels[0].get_yscale() == "log"
    panels[0].set_ylim(top=(2 if logarithmic else 1.1) * max(_top(entry, _TAIL * max(heights)) for entry in latencies))
    for axes in grid[:, 0]:
        axes.set_ylabel("milliseconds per row" + (", logarithmic" if logarithmic else ""))
    for axes in panels[len(threads) :]:
        axes.set_axis_off()
    tails = "line: to the 99th percentile, cut where its milliseconds stand"
    legend_below(figure, panels[0], title=f"bar: median; {tails}; x: speed-up of the bundle")
    title_above(figure, f"{report['bundle']} in onnxruntime")
    return save(figure, destination)


def _top(entry: Mapping[str, Any], highest: float) -> float:
    """Return the upper end of the line to the 99th percentile, per row."""
    return float(max(entry["p50_ms"] / entry["batch"], min(entry["p99_ms"] / entry["batch"], highest)))


def _draw(axes: Any, latencies: list[Mapping[str, Any]], models: list[str], batches: list[int], highest: float) -> None:
    width = 0.8 / max(3, len(models))
    for index, model in enumerate(models):
        entries = [entry for entry in latencies if entry["model"] == model]
        places = [batches.index(entry["batch"]) + (index + 0.5 - len(models) / 2) * width for entry in entries]
        heights = [entry["p50_ms"] / entry["batch"] for entry in entries]
        tails = [_top(entry, highest) - height for entry, height in zip(entries, heights, strict=True)]
        axes.bar(places, heights, width * 0.92, color=_COLOURS[index % len(_COLOURS)], label=model)
        axes.errorbar(places, heights, [[0.0] * len(tails), tails], linestyle="", color="#333333", linewidth=0.8)
        for place, height, tail, entry in zip(places, heights, tails, entries, strict=True):
            tail_end, ratio = entry["p99_ms"] / entry["batch"], entry["bundle_speedup"]
            lines = [f"to\n{_short(tail_end)}"] if tail_end > highest else []
            lines += [f"{_short(ratio)}x"] if index > 0 else []
            style = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
            axes.annotate("\n".join(lines), (place, height + tail), (0, 2), **style)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.set_xlim(-0.6, len(batches) - 0.4)
    grids(axes, axis="y")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"
