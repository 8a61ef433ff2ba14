"""The section on the agreement of outputs with those of a float model."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_deploy.report.pages.html import Column, escape, table


def outputs_table(caption: str, outputs: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the agreement of each output as HTML; nothing without outputs."""
    columns = [Column("output", number=False), Column("SQNR, dB"), Column("cosine"), Column("worst"),
               Column("same largest value"), Column("overlap of maps"), Column("calls of another shape")]  # fmt: skip
    rows = [
        (
            each["name"], f"{each['sqnr_db']:.1f}", f"{each['cosine']:.6f}", f"{each['worst']:.3g}",
            percent(each["top1"]), percent(each["overlap"]), str(each["other_shapes"] or ""),
        )
        for each in outputs
    ]  # fmt: skip
    return table(caption, columns, rows) if rows else ""


def output_section(report: Mapping[str, Any]) -> str:
    """Return the agreement of a bundle's outputs with the float model's as HTML; nothing where it is not known."""
    outputs, detection = report.get("agreement") or (), report.get("detection")
    if not outputs:
        return ""
    said = "Overlap is the intersection over union of positions above a threshold, or of each class, the mean."
    if detection is not None:
        said += (
            f" With the float model's {detection['objects']:,} boxes of a score of at least "
            f"{detection['least_score']:g} as the truth, the mean average precision is "
            f"{percent(detection['mean_average_precision'])}."
        )
    caption = "Outputs as served against the float model"
    return f"<section><h2>Outputs</h2>\n<p>{escape(said)}</p>\n{outputs_table(caption, outputs)}</section>"


def percent(share: float | None, without: str = "") -> str:
    """Return a share in percent, or what stands there without one."""
    return without if share is None else f"{100 * share:.4g} %"
