"""Summarise a classifier's bundle that was just written."""

from collections.abc import Mapping
from typing import Any

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.tasks.exporting import ExportSummary, weights_in_words


def describe_export(bundle: Bundle) -> ExportSummary:
    """Describe the bundle, and whether onnxruntime reproduces its golden sample, see `Task`."""
    check = OnnxRuntimeModel(bundle.onnx_path, bundle.signature).reproduce_golden(bundle.golden)
    same = f"all {check.values} {check.what} of the golden sample are reproduced"
    differs = f"{check.mismatches} of {check.values} {check.what} of the golden sample are not reproduced"
    title = (
        (", calibrated only," if bundle.calibrated else "")
        + weights_in_words(bundle.facts)
        + (", symmetric" if "activations" in bundle.facts else "")
    )
    facts = {
        "computes on": _computes_on(bundle.facts),
        "in onnxruntime": same if check.reproduced else differs,
    }
    return ExportSummary(check, check.reproduced, differs, title, facts, {"formats": bundle.formats})


def _computes_on(facts: Mapping[str, Any]) -> str:
    if "computed_in_float" not in facts:
        return "integers from end to end"
    share, named, reason = (facts[key] for key in ("MACs_on_integers", "computed_in_float", "why_in_float"))
    return f"{share} of the MACs on integers; in float {named}, since {reason}"
