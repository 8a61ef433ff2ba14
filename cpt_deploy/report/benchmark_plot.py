"""The plot of `cpt benchmark`: time per row of each model, by batch size and threads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.report.figures import BLUE, ORANGE, PINK, figure_style, new_figure

_COLOURS = (ORANGE, "#b8b8b8", BLUE, PINK)
FORMATS = (".png", ".svg", ".pdf")


def check_plot_path(destination: Path) -> None:
    """Check, before anything is measured, that a plot can be drawn and written to a path.

    Raises:
        UsageError: If the suffix is not that of a supported image format.
        DataError: If its folder does not exist.
    """
    new_figure(1, 1)
    if destination.suffix.lower() not in FORMATS:
        raise UsageError(f"Expected a file ending in {', '.join(FORMATS)}, but got {destination.name}")
    if not destination.parent.is_dir():
        raise DataError(f"Expected a folder {destination.parent} to write the plot to, but there is none")


def plot_benchmark(report: Mapping[str, Any], destination: Path) -> None:
    """Draw the median time per row, with a line up to the 99th percentile and the speed-up of the bundle.

    Args:
        report: The fields of a benchmark report (`BenchmarkReport.to_dict()`).
        destination: The PNG, SVG or PDF file to write.
    """
    latencies = report["latencies"]
    threads = list(dict.fromkeys(entry["threads"] for entry in latencies))
    models = list(dict.fromkeys(entry["model"] for entry in latencies))
    batches = list(dict.fromkeys(entry["batch"] for entry in latencies))
    with figure_style():
        width = max(5.6, 1.0 + len(threads) * (0.9 + 0.42 * len(batches) * len(models)))
        figure = new_figure(width, 4.2)
        panels = figure.subplots(1, len(threads), sharey=True, squeeze=False)[0]
        for column, (axes, count) in enumerate(zip(panels, threads, strict=True)):
            chosen = [entry for entry in latencies if entry["threads"] == count]
            _draw(axes, chosen, models, batches)
            axes.set_title(f"{count} thread{'s' if count > 1 else ''}", fontsize=9)
            axes.set_ylabel("milliseconds per row" if column == 0 else "")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(models))
        legend = "bar: median, line: to the 99th percentile, number: speed-up of the bundle"
        figure.suptitle(f"{report['bundle']} in onnxruntime\n{legend}", fontsize=9, parse_math=False)
        figure.savefig(destination, dpi=150)


def _draw(axes: Any, latencies: list[Mapping[str, Any]], models: list[str], batches: list[int]) -> None:
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        entries = [entry for entry in latencies if entry["model"] == model]
        places = [batches.index(entry["batch"]) - 0.4 + (index + 0.5) * width for entry in entries]
        heights = [entry["p50_ms"] / entry["batch"] for entry in entries]
        tails = [max(0.0, entry["p99_ms"] - entry["p50_ms"]) / entry["batch"] for entry in entries]
        axes.bar(places, heights, width * 0.92, color=_COLOURS[index % len(_COLOURS)], label=model)
        axes.errorbar(places, heights, [[0.0] * len(tails), tails], linestyle="", color="#333333", linewidth=0.8)
        for place, height, tail, entry in zip(places, heights, tails, entries, strict=True):
            if index > 0:
                text = f"{entry['bundle_speedup']:.2f}x"
                axes.annotate(text, (place, height + tail), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.grid(visible=True, axis="y", color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
