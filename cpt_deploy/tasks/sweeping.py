"""Cells of a sweep's table that every task has."""

from cpt_deploy.tasks.interface import Entry


def bits_cells(entry: Entry) -> tuple[str, str]:
    """Return the cells of a table that tell bits."""
    return f"{entry['weight_bits']} bits", f"{entry['activation_bits']} bits"


def integers_cell(entry: Entry) -> str:
    """Return the cell that tells how many integers differ between executor and onnxruntime."""
    if entry["mismatching_integers"] is None:
        return "not compared"
    return f"{entry['mismatching_integers']} of {entry['compared_integers']:,}"
