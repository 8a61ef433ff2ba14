"""Draw the plots of the validation page as SVG, from the fields of a validation report."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_deploy.bundle import FORMATS
from cpt_deploy.metric import Metric
from cpt_deploy.report.figures import BLUE, GREY, ORANGE, grids, new_figure, picture, to_svg
from cpt_deploy.report.labels import shortened

Report = Mapping[str, Any]

WIDTH = 4.6
"""Inches; at this width the text is still readable on a phone."""

_RUNTIME_NAMES = {
    "executor": "integer executor",
    "onnxruntime": "onnxruntime, as served",
    "onnxruntime-unoptimized": "onnxruntime, not optimized",
    **{name: known.title for name, known in FORMATS.items() if not known.always},
}
_MAX_NAMED_TENSORS = 70
_MAX_NAMED_CLASSES = 30
_MAX_COUNTED_CLASSES = 15
_NARROWEST = 0.02
"""Minimum width of the axis of a metric, relative to the metric, so that nearly equal runtimes look equal."""


def reference_name(report: Report) -> str:
    """Return the name of the reference of the comparison: the trained model, or the calibrated float model."""
    return str(report.get("reference", "trained model"))


def runtime_name(report: Report, name: str) -> str:
    """Return the name of a runtime on the page."""
    return reference_name(report) if name == "trained" else _RUNTIME_NAMES[name]


@picture
def metric_plot(report: Report) -> str:
    """Draw the metric in each runtime with its 95 % interval, if it has one."""
    runtimes, metric = report["runtimes"], Metric.from_dict(report["metric"])
    intervals = any(runtime["interval_95"] for runtime in runtimes)
    figure = new_figure(WIDTH, 0.8 + 0.38 * len(runtimes))
    axes = figure.subplots()
    for row, runtime in enumerate(runtimes):
        served = runtime["name"] == "onnxruntime"
        colour = ORANGE if served else BLUE
        if runtime["interval_95"] and None not in runtime["interval_95"]:
            bounds = [metric.scale * bound for bound in runtime["interval_95"]]
            axes.plot(bounds, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        value = runtime[metric.name]
        if value is not None:
            axes.plot([metric.scale * value], [row], color=colour, marker="D" if served else "o", markersize=6)
    axes.set_yticks(range(len(runtimes)), [runtime_name(report, runtime["name"]) for runtime in runtimes])
    axes.invert_yaxis()
    axes.set_ylim(len(runtimes) - 0.5, -0.5)
    low, high = axes.get_xlim()
    if (missing := _NARROWEST * max(abs(low), abs(high)) - (high - low)) > 0:
        axes.set_xlim(low - missing / 2, high + missing / 2)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_xlabel(metric.axis + (", with 95 % interval" if intervals else ""))
    grids(axes, axis="x")
    parts = "; ".join(f"{runtime_name(report, r['name'])} {metric.text(r[metric.name])}" for r in runtimes)
    interval = " with its 95 % interval" if intervals else ""
    alternative = f"{metric.heading} in each runtime{interval}: {parts}."
    return to_svg(figure, name="metric", alternative=alternative)


@picture
def agreement_plot(report: Report) -> str:
    """Draw for each quantized tensor the share of integers that differ from the integer executor's."""
    tensors, others = report["tensors"], report["unoptimized_tensors"] or []
    rows = range(len(tensors))
    named = len(tensors) <= _MAX_NAMED_TENSORS
    figure = new_figure(WIDTH, 1.1 + (0.155 * len(tensors) if named else 6.0))
    axes = figure.subplots()
    if others:
        shares = [_differing(tensor) for tensor in others]
        axes.barh(rows, shares, color="#b8b8b8", height=0.7, label="optimizations off")
    shares = [_differing(tensor) for tensor in tensors]
    axes.plot(shares, rows, color=ORANGE, marker="D", markersize=3.5, linestyle="", label="as served", clip_on=False)
    if named:
        axes.set_yticks(rows, [shortened(tensor["name"]) for tensor in tensors], fontsize=7)
    else:
        axes.set_ylabel("quantized tensor, in graph order")
    axes.set_ylim(len(tensors) - 0.4, -0.6)
    axes.set_xlim(0, max(0.05, 1.05 * max(_differing(tensor) for tensor in [*tensors, *others])))
    axes.set_xlabel("integers that differ from the integer executor's (%)")
    grids(axes, axis="x")
    figure.legend(loc="outside upper center", ncols=2)
    worst = max(tensors, key=_differing)
    alternative = (
        f"Share of integers that differ from the integer executor's in each of {len(tensors)} quantized tensors. "
        f"As served, the largest share is {_differing(worst):.3g} %"
    )
    if others:
        alternative += f"; with optimizations off it is {max(_differing(tensor) for tensor in others):.3g} %"
    return to_svg(figure, name="agreement", alternative=f"{alternative}. The table below has the figures.")


@picture
def confusion_plot(report: Report, labels: Sequence[str]) -> str:
    """Draw the confusion matrix, shaded by the share of each class."""
    import numpy as np
    from matplotlib.colors import PowerNorm

    confusion = report["confusion"]
    classes = confusion["classes"]
    counts = np.zeros((classes, classes))
    for right, given, count in confusion["cells"]:
        counts[right, given] = count
    shares = counts / np.maximum(np.array(confusion["samples"])[:, np.newaxis], 1)
    side = min(WIDTH, 1.8 + 0.32 * classes)
    figure = new_figure(WIDTH, side)
    axes = figure.subplots()
    # A power scale makes the few mistakes visible next to the many correct answers.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="none")
    if classes <= _MAX_NAMED_CLASSES:
        names = [shortened(label, 14) for label in labels]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(classes), names, fontsize=8, **turned)
        axes.set_yticks(range(classes), names, fontsize=8)
    if classes <= _MAX_COUNTED_CLASSES:
        for right, given in np.argwhere(counts):
            colour = "white" if shares[right, given] > 0.4 else "black"
            text = f"{counts[right, given]:.0f}"
            axes.text(given, right, text, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xlabel("label predicted in onnxruntime")
    axes.set_ylabel("true label")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    left_out = f"; {confusion['omitted']} are in cells that are left out" if confusion["omitted"] else ""
    alternative = (
        f"Confusion matrix of {classes} classes: {int(np.trace(counts))} of {sum(confusion['samples'])} samples lie on "
        f"the diagonal, where the label is correct{left_out}."
    )
    return to_svg(figure, name="confusion", alternative=alternative)


@picture
def output_plot(report: Report) -> str:
    """Draw served output values against those of the reference model."""
    pairs = report["output_pairs"]
    trained, served = pairs["first_values"], pairs["second_values"]
    low, high = min([*trained, *served], default=0.0), max([*trained, *served], default=1.0)
    margin = 0.03 * (high - low) or 1.0
    bounds = (low - margin, high + margin)
    figure = new_figure(WIDTH, WIDTH)
    axes = figure.subplots()
    axes.plot(bounds, bounds, color=GREY, linewidth=0.8)
    axes.plot(trained, served, color=BLUE, marker="o", markersize=3, alpha=0.35, linestyle="", rasterized=True)
    axes.set_xlim(bounds)
    axes.set_ylim(bounds)
    axes.set_aspect("equal")
    axes.set_xlabel(f"output of the {reference_name(report)}")
    axes.set_ylabel("output in onnxruntime")
    grids(axes)
    worst = max((abs(a - b) for a, b in zip(trained, served, strict=True)), default=0.0)
    alternative = (
        f"{len(trained)} output values in onnxruntime against those of the {reference_name(report)}; they are "
        f"within {worst:.3g} of the diagonal."
    )
    return to_svg(figure, name="outputs", alternative=alternative)


def _differing(tensor: Mapping[str, Any]) -> float:
    """Return the percentage of integers that differ."""
    return 100 * float(tensor["mismatches"]) / max(int(tensor["values"]), 1)
