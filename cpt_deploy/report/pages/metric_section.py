"""The sections of the validation page on the metric: at a glance, and in each runtime."""

from collections.abc import Mapping
from typing import Any

from cpt_deploy.metric import Metric
from cpt_deploy.report.pages.html import Column, escape, figure, table
from cpt_deploy.report.pages.validation_plots import metric_plot, output_plot, reference_name, runtime_name

Report = Mapping[str, Any]


def glance(report: Report) -> str:
    """Return the most important figures as HTML."""
    metric, served = Metric.from_dict(report["metric"]), _runtime(report, "onnxruntime")
    interval = _interval(metric, served)
    tiles = [(f"{metric.title} as served", metric.text(served[metric.name]), interval and f"95 % interval {interval}")]
    found = report["non_inferiority"]
    if found is not None:
        unit, sign = report["drop_unit"], -1 if metric.higher_is_better else 1
        # None is a value that is not finite, which JSON does not have
        low, high = ("unknown" if end is None else f"{sign * end:.2f}" for end in (found["low"], found["high"])[::sign])
        change = "unknown"
        if found["loss"] is not None:
            change = f"{sign * found['loss']:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00") + f" {unit}"
        trained = metric.text(_runtime(report, "trained")[metric.name])
        detail = f"{trained} before; 95 % interval {low} to {high} {unit}"
        tiles.append((f"change from the {reference_name(report)}", change, detail))
    if report["integers"] is not None:
        integers = report["integers"]
        tensors = f"of {integers['compared']:,} in {len(report['tensors'])} tensors"
        tiles.append(("integers that differ", f"{integers['mismatching']:,}", tensors))
    if report["constants"] is not None:
        differing = sum(entry["differing"] for entry in report["constants"]["differences"])
        tiles.append(
            ("constants that differ", f"{differing:,}", f"of {report['constants']['compared']:,} in model.onnx")
        )
    cells = "\n".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}<span class="small">{escape(detail)}</span></dd></div>'
        for name, value, detail in tiles
    )
    return f'<dl class="figures">\n{cells}\n</dl>'


def metric_section(report: Report) -> str:
    """Return the metric in each runtime, with plots, as HTML."""
    metric, unit = Metric.from_dict(report["metric"]), report["dataset"]["unit"]
    answers = any(pair["other_answers"] is not None for pair in report["comparisons"])
    tested = any("p_value" in pair for pair in report["comparisons"])
    intervals = [_interval(metric, runtime) for runtime in report["runtimes"]]
    columns = [
        Column("runtime", number=False), Column(metric.title), *([Column("95 % interval")] if any(intervals) else []),
        *([Column("answers unlike served")] if answers else []), Column("largest output difference"),
        *([Column("McNemar p")] if tested else []),
    ]  # fmt: skip
    rows = []
    for runtime, interval in zip(report["runtimes"], intervals, strict=True):
        pair = _pair(report, runtime["name"]) or {}
        worst, others, p_value = (pair.get(key) for key in ("worst_difference", "other_answers", "p_value"))
        rows.append(
            (
                runtime_name(report, runtime["name"]), metric.text(runtime[metric.name]),
                *([interval] if any(intervals) else []),
                *(["" if others is None else others] if answers else []), "" if worst is None else f"{worst:.3g}",
                *(["" if p_value is None else f"{p_value:.3g}"] if tested else []),
            )
        )  # fmt: skip
    plot, outputs = figure(metric_plot(report), f"All runtimes saw the same {escape(unit)}."), ""
    pairs = report["output_pairs"]
    if pairs is not None and pairs["first_values"]:
        count, trained = len(pairs["first_values"]), _pair(report, "trained")
        caption = (
            f"{count:,} random output values; on the diagonal, {reference_name(report)} and served model are equal."
        )
        if trained is not None and trained["worst_difference"] is not None:
            caption += f" The largest difference of all values is {trained['worst_difference']:.3g}."
        outputs = figure(output_plot(report), caption)
    note = (
        "<p>A small p of McNemar's exact test would mean that the runtime and the served model are not equally "
        "accurate. The interval of the change is Tango's for paired answers.</p>"
        if tested
        else "<p>The interval of the change is that of paired samples.</p>"
    )
    return (
        f"<section><h2>{metric.heading}</h2>\n"
        f'<div class="beside"><div>{plot}{_exactness(report)}{note}</div>{outputs}</div>\n'
        f"{table(f'{metric.heading} in each runtime', columns, rows)}</section>"
    )


def _exactness(report: Report) -> str:
    """Compare the executor's outputs with the served ones and with the trained model's, as HTML."""
    served, trained, said = report["served_outputs"], report["trained_codes"], ""
    if served is not None:
        within = "" if served["tolerance"] is None else f", within {served['tolerance']:g} of a sample's largest"
        said += (
            f"{served['values'] - served['differing']:,} of {served['values']:,} served output values equal those of "
            f"the integer executor{within}. "
        )
    if trained is not None:
        said += (
            f"The {escape(reference_name(report))} quantizes in float: {trained['differing']:,} of its "
            f"{trained['values']:,} output values are nearer to another quantized value, at most {trained['worst']} "
            "away."
        )
    return f"<p>{said}</p>" if said else ""


def _runtime(report: Report, name: str) -> Mapping[str, Any]:
    return next(runtime for runtime in report["runtimes"] if runtime["name"] == name)


def _pair(report: Report, name: str) -> Mapping[str, Any] | None:
    pairs = report["comparisons"]
    return next((pair for pair in pairs if (pair["first"], pair["second"]) == (name, "onnxruntime")), None)


def _interval(metric: Metric, runtime: Mapping[str, Any]) -> str:
    bounds = runtime["interval_95"]
    # no line ends before a unit
    return "" if bounds is None else " to ".join(metric.text(bound).replace(" ", "\u00a0") for bound in bounds)
