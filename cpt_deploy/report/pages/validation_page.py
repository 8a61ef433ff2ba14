"""Render the evidence of `cpt validate` as one self-contained HTML page, from the fields of validation.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_deploy.bundle.golden import compared_values
from cpt_deploy.bundle.runtime.providers import CPU
from cpt_deploy.metric import Metric
from cpt_deploy.report.pages.float_section import FOLLOWED, float_section
from cpt_deploy.report.pages.html import Column, escape, facts, figure, page, table
from cpt_deploy.report.pages.metric_section import glance, metric_section
from cpt_deploy.report.pages.output_section import output_section
from cpt_deploy.report.pages.validation_plots import agreement_plot, confusion_plot

Report = Mapping[str, Any]

_MAX_CONFUSIONS = 10


def render_validation_page(report: Report, labels: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        report: The fields of validation.json (`ValidationReport.to_dict()`).
        labels: Names of the classes; none if the task has no classes.
    """
    sections = [
        _head(report),
        glance(report),
        metric_section(report),
        output_section(report),
        _integers(report),
        float_section(report),
        _constants(report),
        _confusion(report, labels),
        _saturation(report),
        _conditions(report),
        "<footer>Written by <code>cpt validate</code>; the same figures are in <code>validation.json</code>.</footer>",
    ]
    return page(f"Validation of {report['bundle']}", "\n".join(section for section in sections if section))


def _head(report: Report) -> str:
    dataset, verdict = report["dataset"], report["verdict"]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in (*report["reasons"], *report["undecided"]))
    decided = report["reasons"] or not report["undecided"]
    look = ("passed" if report["passed"] else "failed") if decided else "undecided"
    return (
        f"<header><h1>Validation of {escape(report['bundle'])}</h1>\n"
        f'<p class="lead">{dataset["samples"]:,} {escape(dataset["unit"])} of {escape(dataset["name"])} '
        f"({escape(dataset['split'])}), {escape(_moment(report['validated_at']))}</p>\n"
        f'<div class="verdict {look}"><strong>{verdict.capitalize()}</strong> '
        f"<span>{escape(_gate(report))}</span>{f'<ul>{reasons}</ul>' if reasons else ''}</div></header>"
    )


def _moment(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _gate(report: Report) -> str:
    gate, metric = report["gate"], Metric.from_dict(report["metric"])
    asked = ["files as exported and trained with", "finite outputs"]
    if gate["require_exact"]:
        asked.insert(0, "every integer exact")
    if gate["max_drop"] is not None:
        undecided = ", or too few samples to decide" if gate["allow_undecided"] else ""
        change = "lost" if metric.higher_is_better else "more"
        most = f"at most {gate['max_drop']:g} {report['drop_unit']} of {metric.title} {change}"
        asked.insert(0, most + undecided)
    return f"the gate: {', '.join(asked)}"


def _integers(report: Report) -> str:
    if not report["tensors"]:
        return ""
    others = {tensor["name"]: tensor for tensor in report["unoptimized_tensors"] or []}
    columns = [Column("tensor", number=False), Column("equal"), Column("worst")]
    if others:
        columns += [Column("equal, not optimized"), Column("worst, not optimized")]
    columns += [Column("values"), Column("operator", number=False)]
    rows = [
        (
            tensor["name"], *_agreement(tensor), *(_agreement(others[tensor["name"]]) if others else ()),
            f"{tensor['values']:,}", tensor["operator"],
        )
        for tensor in report["tensors"]
    ]  # fmt: skip
    explanation = (
        "The integer executor computes the frozen network in integers. Every integer of every quantized tensor in "
        "onnxruntime's optimized graph is compared with the executor's; “worst” is the largest difference, in "
        "quantized values."
    )
    if report.get("float_parts") is not None:
        explanation = FOLLOWED
    if others:
        explanation += " With its optimizations off, onnxruntime computes the file in float and rounds differently."
    caption = "Orange: as served. Grey bars: the same file with onnxruntime's optimizations off."
    return (
        f"<section><h2>Integers of each layer</h2>\n<p>{escape(explanation)}</p>\n"
        f"{figure(agreement_plot(report), caption if others else 'As served, against the executor.')}\n"
        f"{table('Agreement with the integer executor, in graph order', columns, rows)}</section>"
    )


def _agreement(tensor: Mapping[str, Any]) -> tuple[str, str]:
    equal = 100 * (1 - tensor["mismatches"] / max(tensor["values"], 1))
    # 100 % is shown only if all values are equal.
    shown = "100 %" if not tensor["mismatches"] else f"{min(equal, 99.9999):.4f} %"
    return shown, str(tensor["worst_difference"])


def _constants(report: Report) -> str:
    constants = report["constants"]
    if constants is None:
        return ""
    intro = (
        f"<section><h2>Constants of model.onnx</h2>\n<p>{constants['compared']:,} weights, scales, zero points and "
        "biases of the file were compared with the integer graph in quantization.json and model.safetensors, without "
        "running the model: "
    )
    if not constants["differences"]:
        return f"{intro}all are equal.</p></section>"
    columns = (Column("tensor", number=False), Column("constant", number=False), Column("differing"), Column("of"),
               Column("first difference", number=False))  # fmt: skip
    rows = [
        (entry["tensor"], entry["part"], f"{entry['differing']:,}", f"{entry['values']:,}", entry["detail"])
        for entry in constants["differences"]
    ]
    return f"{intro}these differ.</p>\n{table('Constants that differ from the export', columns, rows)}</section>"


def _confusion(report: Report, labels: Sequence[str]) -> str:
    confusion = report["confusion"]
    if confusion is None:
        return ""
    mistakes = sorted((cell for cell in confusion["cells"] if cell[0] != cell[1]), key=lambda cell: -cell[2])
    columns = (Column("true label", number=False), Column("predicted", number=False), Column(report["dataset"]["unit"]),
               Column("of the class"))  # fmt: skip
    rows = [
        (labels[right], labels[given], f"{count:,}", f"{100 * count / confusion['samples'][right]:.2f} %")
        for right, given, count in mistakes[:_MAX_CONFUSIONS]
    ]
    caption = "Shaded by the share of the class; the scale is stretched to make rare mistakes visible."
    if confusion["omitted"]:
        caption += f" {confusion['omitted']:,} {report['dataset']['unit']} in rarer cells are left out."
    nothing = "No confusion is frequent enough to be listed" if confusion["omitted"] else "No sample was misclassified"
    listed = table("Most frequent confusions", columns, rows) if rows else f"<p>{nothing}.</p>"
    return (
        "<section><h2>Confusions between classes</h2>\n"
        f'<div class="beside">{figure(confusion_plot(report, labels), caption)}<div>{listed}</div></div></section>'
    )


def _saturation(report: Report) -> str:
    saturation = report["saturation"]
    layers = [layer for layer in saturation["layers"] if layer["possible"]]
    here = {True: "This machine is one of them.", False: "This machine is not one of them.", None: ""}[
        saturation["applies_to_this_cpu"]
    ]
    intro = (
        "<section><h2>Other processors</h2>\n<p>x86 processors without VNNI add pairs of 8-bit products in 16 bits, "
        "which can saturate; there, onnxruntime is set to use slower kernels that add in 32 bits. "
        "From the quantized weights alone: "
    )
    if not layers:
        return f"{intro}no layer of this network can saturate, so it runs on the same kernels everywhere.</p></section>"
    columns = (Column("layer", number=False), Column("activation bits"), Column("worst pair"),
               Column("channels at risk"))  # fmt: skip
    rows = [
        (layer["name"], layer["activation_bits"], f"{layer['worst_pair_sum']:,}",
         f"{layer['channels_at_risk']} of {layer['channels']}")
        for layer in layers
    ]  # fmt: skip
    return (
        f"{intro}without these, {len(layers)} of {len(saturation['layers'])} layers could saturate. {here}</p>\n"
        f"{table('Layers that could saturate; the limit of a pair is 32,767', columns, rows)}</section>"
    )


def _conditions(report: Report) -> str:
    dataset, cpu, golden = report["dataset"], report["cpu"], report["golden"]
    rows = [
        ("data set", f"{escape(dataset['name'])}, {escape(dataset['split'])}: {dataset['samples']:,} of "
                     f"{dataset['size']:,} {escape(dataset['unit'])}<br>"
                     f"<code>sha256 {escape(dataset['sha256'])}</code>"),
        ("model.onnx", f"<code>sha256 {escape(report['model_sha256'])}</code>"),
        ("all files", f"<code>sha256 {escape(report['content_sha256'])}</code>"),
        ("golden sample", f"{golden['values'] - golden['mismatches']:,} of {golden['values']:,} "
                          f"{compared_values(golden.get('tolerance'))} reproduced"),
        ("processor", f"{escape(cpu['model'])}, {escape(cpu['architecture'])}, {cpu['cores']} cores"),
        ("integer instructions", escape(", ".join(cpu["flags"] or ()) or "unknown")),
        ("onnxruntime on", escape(report.get("provider", CPU))),
        ("versions", ", ".join(f"{escape(name)} {escape(value)}" for name, value in report["versions"].items())),
    ]  # fmt: skip
    if report["graph"] is not None:
        rows.insert(2, ("optimized graph", escape(_counted(report["graph"]["operators"]))))
        rows.insert(3, ("operators in float", escape(_counted(report["graph"]["float_operators"]) or "none")))
    rows += [("note", escape(note)) for note in report["notes"]]
    return f"<section><h2>Data, files and machine</h2>\n{facts(rows)}</section>"


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())
