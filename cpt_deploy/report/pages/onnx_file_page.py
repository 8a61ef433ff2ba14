"""Render the validation of an ONNX file of any tool as one self-contained HTML page, from the fields of its JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_deploy.report.pages.html import Column, escape, facts, page, table
from cpt_deploy.report.pages.output_section import output_section, outputs_table, percent

Report = Mapping[str, Any]


def render_file_page(report: Report) -> str:
    """Return the page as HTML.

    Args:
        report: The fields of the JSON (`FileReport.to_dict()`).
    """
    sections = [
        _head(report),
        _glance(report),
        _findings(report["inspection"]["findings"]),
        _integers(report),
        _unoptimized(report),
        _agreement(report),
        _layers(report["inspection"]),
        _conditions(report),
        "<footer>Written by <code>cpt validate</code>; the same figures are in the JSON beside this page.</footer>",
    ]
    return page(f"Validation of {report['inspection']['file']}", "\n".join(section for section in sections if section))


def _head(report: Report) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report["reasons"])
    moment = report["validated_at"].replace("T", " ").replace("+00:00", " UTC")
    data = f"{report['rows']:,} rows of {report['data']}" if report["data"] else f"{report['rows']:,} random rows"
    return (
        f"<header><h1>Validation of {escape(report['inspection']['file'])}</h1>\n"
        f'<p class="lead">{escape(data)}, {escape(moment)}</p>\n'
        f'<div class="verdict {report["verdict"]}"><strong>{report["verdict"].capitalize()}</strong> '
        "<span>the gate: every integer exact, sums within int32, finite outputs</span>"
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div></header>"
    )


def _glance(report: Report) -> str:
    inspection, served = report["inspection"], report["served"]
    changed, values = (sum(entry[key] for entry in report["unoptimized"]) for key in ("mismatches", "values"))
    figures = [
        ("differing integers", f"{served['mismatching']:,}", f"of {served['compared']:,}"),
        ("on integers", percent(inspection["integer_share"], "unknown"), "of the multiply-accumulates"),
        (
            "change in other runtimes",
            percent(changed / values if values else None, "unknown"),
            f"of {values:,} integers",
        ),
    ]
    default = report["default_kernels"]
    if default is not None:
        figures.append(("wrong in other programs here", f"{default['mismatching']:,}", "with kernels that saturate"))
    if report["latency"] is not None:
        latency = report["latency"]
        figures.append(("speed", f"{latency['speedup']:.2f}x", f"of float, {latency['milliseconds']:.3g} ms"))
    for title, key in (("accuracy", "accuracy"), ("accuracy of the float model", "source_accuracy")):
        if report[key] is not None:
            figures.append((title, percent(report[key]["successes"] / report[key]["trials"]), "of the labels"))
    items = "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}<span class="small">{escape(more)}</span></dd></div>'
        for name, value, more in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return "<section><h2>Findings</h2>\n<p>Nothing in the file has to be changed.</p></section>"
    columns = [Column(title, number=False) for title in ("finding", "what", "what to change", "where")]
    rows = [(each["rule"], each["what"], each["change"], _listed(each["where"])) for each in findings]
    return f"<section><h2>Findings</h2>\n{table('What to change in the file', columns, rows)}</section>"


def _integers(report: Report) -> str:
    default = {entry["name"]: entry for entry in (report["default_kernels"] or {}).get("operators", ())}
    columns = [Column("operator", number=False), Column("type", number=False), Column("stretch"), Column("differing"),
               Column("of"), Column("worst")]  # fmt: skip
    if default:
        columns.append(Column("differing, default kernels"))
    rows = [
        (
            entry["name"], entry["operator"], entry["stretch"], f"{entry['mismatches']:,}", f"{entry['values']:,}",
            entry["worst"], *([f"{default.get(entry['name'], {}).get('mismatches', 0):,}"] if default else []),
        )
        for entry in report["served"]["operators"]
    ]  # fmt: skip
    text = (
        "Each integer operator of onnxruntime's optimized graph is recomputed in exact arithmetic from onnxruntime's "
        "own integers, so that one difference is not counted again behind it. A stretch is a set of operators "
        "connected by integers; between stretches operators compute in float."
    )
    return (
        f"<section><h2>Integers</h2>\n<p>{escape(text)}</p>\n"
        f"{table('Agreement with exact arithmetic, in graph order', columns, rows)}</section>"
    )


def _unoptimized(report: Report) -> str:
    rows = [
        (
            entry["name"],
            entry["operator"],
            f"{entry['mismatches']:,}",
            f"{entry['values']:,}",
            entry["worst_difference"],
        )
        for entry in report["unoptimized"]
    ]
    if not rows:
        return ""
    columns = [Column("tensor", number=False), Column("operator", number=False), Column("change"), Column("of"),
               Column("worst")]  # fmt: skip
    text = (
        "With its optimizations off, onnxruntime computes Q/DQ files in float and rounds at other places, as another "
        "runtime or processor may. Differences accumulate from layer to layer here. This is not part of the verdict."
    )
    return (
        f"<section><h2>Other runtimes</h2>\n<p>{escape(text)}</p>\n"
        f"{table('Integers that change with optimizations off', columns, rows)}</section>"
    )


def _agreement(report: Report) -> str:
    unoptimized = outputs_table(
        "Outputs with optimizations off against those with them on", report["unoptimized_outputs"]
    )
    against = output_section(report)
    return (
        f"{against}\n<section><h2>Outputs of other runtimes</h2>\n{unoptimized}</section>" if unoptimized else against
    )


def _layers(inspection: Mapping[str, Any]) -> str:
    columns = [Column("layer", number=False), Column("type", number=False), Column("on integers", number=False),
               Column("multiply-accumulates"), Column("worst pair"), Column("worst sum")]  # fmt: skip
    rows = [
        (
            each["name"], each["operator"], "yes" if each["integers"] else "no",
            *("" if each[key] is None else f"{each[key]:,}" for key in ("macs", "worst_pair", "worst_sum")),
        )
        for each in inspection["layers"]
    ]  # fmt: skip
    if not rows:
        return ""
    text = (
        "Two products of uint8 and int8 whose sum exceeds 32,767 (“worst pair”) can saturate on x86 processors without "
        "VNNI; partial sums have to fit into int32."
    )
    return f"<section><h2>Layers</h2>\n<p>{text}</p>\n{table('Layers that multiply', columns, rows)}</section>"


def _conditions(report: Report) -> str:
    cpu, inspection = report["cpu"], report["inspection"]
    rows = [
        ("file", f"{inspection['size_bytes']:,} bytes, opset {inspection['opset']}<br>"
                 f"<code>sha256 {escape(report['sha256'])}</code>"),
        ("processor", f"{escape(cpu['model'])}, {escape(cpu['architecture'])}, {cpu['cores']} cores"),
        ("integer instructions", escape(", ".join(cpu["flags"] or ()) or "unknown")),
        ("in float", escape(", ".join(f"{n} {name}" for name, n in inspection["in_float"].items()) or "nothing")),
        ("versions", ", ".join(f"{escape(name)} {escape(value)}" for name, value in report["versions"].items())),
        *((("notes", "<br>".join(map(escape, report["notes"]))),) if report["notes"] else ()),
    ]  # fmt: skip
    return f"<section><h2>Conditions</h2>\n{facts(rows)}</section>"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f", … ({len(names)})" if len(names) > 12 else "")
