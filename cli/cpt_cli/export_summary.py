"""What an export says on the terminal of the bundle that it wrote."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle, GoldenCheck
    from cpt_deploy.bundle.opened import OpenedBundle

_COSTS = {
    "divergence": "divergence of the class probabilities in nats on {sensitivity_images:,} training images",
    "loss_rise": "rise of the loss in nats a token on {sensitivity_tokens:,} tokens of validation text",
}
"""What a bundle calls the costs of fewer bits in one layer alone, in words."""


def show_export(bundle: "Bundle") -> "GoldenCheck":
    """Print what was exported, and whether onnxruntime on this machine reproduces its golden sample."""
    from cpt_deploy.bundle import OnnxRuntimeModel

    check = OnnxRuntimeModel(bundle.onnx_path).reproduce_golden(bundle.golden)
    same = f"all {check.values} {check.what} of the golden sample are reproduced"
    differs = f"{check.mismatches} of {check.values} {check.what} of the golden sample are not reproduced"
    sizes = files_bytes(bundle)
    facts = bundle.facts
    if "mixed_precision" in facts:
        show_mixed_precision(facts["mixed_precision"])
    out.fields(
        f"Exported {bundle.name}"
        + (", calibrated only," if bundle.calibrated else "")
        + weights_in_words(facts)
        + (", symmetric" if "activations" in facts else ""),
        {
            "bundle": formats.path(bundle.path),
            "model.onnx": f"{formats.size(sizes['model.onnx'])}, sha256 {bundle.sha256[:16]}…",
            "computes on": _computes_on(facts),
            "in onnxruntime": same if check.reproduced else differs,
            "all files": formats.size(sum(sizes.values())),
        },
    )
    if not check.reproduced:
        out.warning(f"onnxruntime and the integer executor disagree: {differs}; cpt validate says where")
    return check


def _computes_on(facts: Mapping[str, Any]) -> str:
    if "computed_in_float" not in facts:
        return "integers from end to end"
    share, named, reason = (facts[key] for key in ("MACs_on_integers", "computed_in_float", "why_in_float"))
    return f"{share} of the MACs on integers; in float {named}, since {reason}"


def weights_in_words(facts: Mapping[str, Any]) -> str:
    """Return what stands behind the name of an exported model: its bits."""
    return (
        f" with weights of {facts['weight_bits']} bits"
        + (" on average" if "mixed_precision" in facts else "")
        + f", activations of {facts['activation_bits']}"
    )


def show_mixed_precision(chosen: Mapping[str, Any]) -> None:
    """Print the bits that each layer got, and what fewer bits in it alone cost."""
    cost = next(name for name in _COSTS if all(name in layer for layer in chosen["layers"]))
    widths = sorted({int(bits) for layer in chosen["layers"] for bits in layer[cost]})
    out.table(
        ("layer", "weights", "bits", *(f"at {bits} bits" for bits in widths)),
        [
            (
                layer["layer"],
                f"{layer['weights']:,}",
                layer["bits"],
                *(f"{layer[cost][str(bits)]:.2g}" for bits in widths),
            )
            for layer in chosen["layers"]
        ],
        title=f"Weights at {formats.share(chosen['size_of_8_bits'], 1)} of their size at 8 bits; "
        + _COSTS[cost].format_map(chosen),
    )


def files_bytes(bundle: "OpenedBundle") -> dict[str, int]:
    """Return the size of each file of a bundle by its name."""
    return {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir())}
