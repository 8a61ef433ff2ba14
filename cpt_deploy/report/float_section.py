"""What the page of a validation says of the parts of a network that compute in float."""

from collections.abc import Mapping
from typing import Any

from cpt_deploy.report.html import Column, escape, table

FOLLOWED = (
    "Parts of this network compute in float. The integer executor computes each stretch of integers from the codes "
    "that onnxruntime had at its entry, and every code and every result of a layer in onnxruntime's optimized graph is "
    "compared with the executor's; “worst” is the greatest difference, in codes or, for layers whose results are real "
    "numbers, in units of their integer sums."
)


def float_section(report: Mapping[str, Any]) -> str:
    """Return the section, or nothing for a network that is integer from end to end.

    Args:
        report: The fields of validation.json.
    """
    floats = report.get("float_parts")
    if floats is None:
        return ""
    share = f"{100 * floats['integer_share_of_macs']:.2f} %"
    named = ", ".join(f"{count} {name}" for name, count in floats["operators"].items()) or "only movements of values"
    text = (
        f"<section><h2>What is computed in float</h2>\n<p>{share} of the {_total(floats):,} multiply-accumulates of an "
        f"image run on integers. In float are: {escape(named)}, since {escape(floats['reason'])}.</p>"
    )
    if floats["own_way"] is None:
        return f"{text}</section>"
    differing = sum(tensor["mismatches"] for tensor in floats["own_way"])
    codes = sum(tensor["values"] for tensor in floats["own_way"])
    text += (
        f"\n<p>When the executor computes the floats by itself too, {differing:,} of {codes:,} codes differ from "
        "onnxruntime's: the last places of a float can move a value over a rounding boundary. This is told and not "
        "judged; accuracies are.</p>"
    )
    columns = (Column("tensor", number=False), Column("differing"), Column("of"), Column("worst"))
    rows = [
        (tensor["name"], f"{tensor['mismatches']:,}", f"{tensor['values']:,}", str(tensor["worst_difference"]))
        for tensor in floats["own_way"]
        if tensor["mismatches"]
    ]
    listed = f"\n{table('Codes that differ on the own way of the executor', columns, rows)}" if rows else ""
    return f"{text}{listed}</section>"


def _total(floats: Mapping[str, Any]) -> int:
    return int(floats["integer_macs"]) + int(floats["float_macs"])
