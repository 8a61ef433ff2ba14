"""Summarise a language model's bundle that was just written."""

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.tasks.exporting import ExportSummary, weights_in_words


def describe_export(bundle: Bundle) -> ExportSummary:
    """Describe the bundle, and how much onnxruntime differs from its golden sample, see `Task`."""
    check = OnnxRuntimeModel(bundle.onnx_path, bundle.signature).reproduce_golden(bundle.golden)
    differs = f"golden logits differ by {check.worst:.2g} at most, {check.tolerance:.2g} are allowed"
    facts = {
        "tokens": f"{bundle.config['vocab_size']:,}, {bundle.facts['tokens']} level",
        "in onnxruntime": differs,
    }
    return ExportSummary(check, check.reproduced, differs, weights_in_words(bundle.facts), facts)
