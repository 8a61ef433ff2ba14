"""Cells of a sweep's table that all tasks share."""

from cpt_deploy.tasks.interface import Entry


def bits_cells(entry: Entry) -> tuple[str, str]:
    """Return the cells for the bits of weights and activations."""
    return f"{entry['weight_bits']} bits", f"{entry['activation_bits']} bits"


def integers_cell(entry: Entry) -> str:
    """Return the cell for the number of integers that differ between executor and onnxruntime."""
    if entry["mismatching_integers"] is None:
        return "not compared"
    return f"{entry['mismatching_integers']} of {entry['compared_integers']:,}"
