"""Summarise a language model's bundle that was just written."""

from cpt_deploy.bundle.language import LanguageBundle, LanguageModel
from cpt_deploy.tasks.exporting import ExportSummary, weights_in_words


def describe_export(bundle: LanguageBundle) -> ExportSummary:
    """Describe the bundle, and how much onnxruntime differs from its golden sample, see `Task`."""
    check = LanguageModel(bundle.onnx_path, bundle.manifest).reproduce_golden(bundle.golden)
    differs = f"golden logits differ by {check.worst:.2g} at most, {bundle.golden.tolerance:.2g} are allowed"
    facts = {
        "tokens": f"{bundle.manifest.vocabulary:,}, {bundle.facts['tokens']} level",
        "in onnxruntime": differs,
    }
    return ExportSummary(check, check.within, differs, weights_in_words(bundle.facts), facts)
