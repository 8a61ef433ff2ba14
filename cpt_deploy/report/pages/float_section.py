"""The section of the validation page on operations that are computed in float."""

from collections.abc import Mapping
from typing import Any

from cpt_deploy.report.pages.html import Column, escape, table

FOLLOWED = (
    "Parts of this network are computed in float. The integer executor replays each integer part from onnxruntime's "
    "integers at its boundary, and every quantized value and every result of a layer in onnxruntime's optimized graph "
    "is compared with the executor's; “worst” is the largest difference, in quantized values or, for layers whose "
    "results are real numbers, in units of their integer sums."
)


def float_section(report: Mapping[str, Any]) -> str:
    """Return the section as HTML, or an empty string for a network that is integer from end to end.

    Args:
        report: The fields of validation.json.
    """
    floats = report.get("float_parts")
    if floats is None:
        return ""
    share = f"{100 * floats['integer_share_of_macs']:.2f} %"
    named = ", ".join(f"{count} {name}" for name, count in floats["operators"].items()) or "only data movement"
    text = (
        f"<section><h2>Computed in float</h2>\n<p>{share} of the {_total(floats):,} multiply-accumulates per "
        f"sample run on integers. In float: {escape(named)}, since {escape(floats['reason'])}.</p>"
    )
    if floats["free_running"] is None:
        return f"{text}</section>"
    differing = sum(tensor["mismatches"] for tensor in floats["free_running"])
    codes = sum(tensor["values"] for tensor in floats["free_running"])
    text += (
        f"\n<p>Free-running, that is computing the float operations too, the executor differs from onnxruntime in "
        f"{differing:,} of {codes:,} quantized values: the last digits of a float can move a value across a rounding "
        "boundary. This is reported but not part of the verdict; the metric is, and so are operations in float that "
        "move more than 0.1 % of the values directly behind them by more than 2.</p>"
    )
    columns = (Column("tensor", number=False), Column("differing"), Column("of"), Column("worst"))
    rows = [
        (tensor["name"], f"{tensor['mismatches']:,}", f"{tensor['values']:,}", str(tensor["worst_difference"]))
        for tensor in floats["free_running"]
        if tensor["mismatches"]
    ]
    listed = f"\n{table('Differing quantized values, executor free-running', columns, rows)}" if rows else ""
    return f"{text}{listed}</section>"


def _total(floats: Mapping[str, Any]) -> int:
    return int(floats["integer_macs"]) + int(floats["float_macs"])
