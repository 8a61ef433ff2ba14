"""What an export says on the terminal of the bundle that it wrote."""

from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle, GoldenCheck


def show_export(bundle: "Bundle") -> "GoldenCheck":
    """Print what was exported, and whether onnxruntime on this machine reproduces its golden sample."""
    from cpt_deploy.bundle import OnnxRuntimeModel

    check = OnnxRuntimeModel(bundle.onnx_path).reproduce_golden(bundle.golden)
    same = f"all {check.values} {check.what} of the golden sample are reproduced"
    differs = f"{check.mismatches} of {check.values} {check.what} of the golden sample are not reproduced"
    sizes = files_bytes(bundle)
    facts = bundle.facts
    if "mixed_precision" in facts:
        _show_mixed_precision(facts["mixed_precision"])
    out.fields(
        f"Exported {bundle.name}"
        + (", calibrated only," if bundle.calibrated else "")
        + f" with weights of {facts['weight_bits']} bits"
        + (" on average" if "mixed_precision" in facts else "")
        + f", activations of {facts['activation_bits']}"
        + (", symmetric" if "activations" in facts else ""),
        {
            "bundle": formats.path(bundle.path),
            "model.onnx": f"{formats.size(sizes['model.onnx'])}, sha256 {bundle.sha256[:16]}…",
            "in onnxruntime": same if check.reproduced else differs,
            "all files": formats.size(sum(sizes.values())),
        },
    )
    if not check.reproduced:
        out.warning(f"onnxruntime and the integer executor disagree: {differs}; cpt validate says where")
    return check


def _show_mixed_precision(chosen: dict[str, Any]) -> None:
    """Print the bits that each layer got, and what fewer bits in it alone do to the class probabilities."""
    widths = sorted({int(bits) for layer in chosen["layers"] for bits in layer["divergence"]})
    out.table(
        ("layer", "weights", "bits", *(f"at {bits} bits" for bits in widths)),
        [
            (
                layer["layer"],
                f"{layer['weights']:,}",
                layer["bits"],
                *(f"{layer['divergence'][str(bits)]:.2g}" for bits in widths),
            )
            for layer in chosen["layers"]
        ],
        title=f"Weights at {formats.share(chosen['size_of_8_bits'], 1)} of their size at 8 bits; divergence of the "
        f"class probabilities in nats on {chosen['sensitivity_images']} training images",
    )


def files_bytes(bundle: "Bundle") -> dict[str, int]:
    """Return the size of each file of a bundle by its name."""
    return {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir())}
