"""The output of `cpt export`: a summary of the bundle."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.tasks import ExportSummary


def show_export(bundle: "Bundle") -> "ExportSummary":
    """Print the exported bundle, and whether onnxruntime on this machine reproduces its golden sample."""
    from cpt_deploy.workflows import describe_export

    summary = describe_export(bundle)
    sizes = files_bytes(bundle)
    if "mixed_precision" in bundle.facts:
        show_mixed_precision(bundle.facts["mixed_precision"])
    out.fields(
        f"Exported {bundle.name}{summary.title}",
        {
            "bundle": readable.path(bundle.path),
            "model.onnx": f"{readable.size(sizes['model.onnx'])}, sha256 {bundle.sha256[:16]}…",
            **summary.facts,
            "all files": readable.size(sum(sizes.values())),
        },
    )
    if not summary.reproduced:
        out.warning(f"onnxruntime and the integer executor disagree: {summary.differs}; cpt validate shows where")
    return summary


def show_mixed_precision(chosen: Mapping[str, Any]) -> None:
    """Print the bits of each layer, and the cost of fewer bits in that layer alone."""
    tried = sorted({int(bits) for layer in chosen["layers"] for bits in layer["cost"]})
    out.table(
        ("layer", "weights", "bits", *(f"at {bits} bits" for bits in tried)),
        [
            (
                layer["layer"],
                f"{layer['weights']:,}",
                layer["bits"],
                *(f"{layer['cost'][str(bits)]:.2g}" for bits in tried),
            )
            for layer in chosen["layers"]
        ],
        title=f"Weights at {readable.share(chosen['size_of_8_bits'], 1)} of their size at 8 bits; {chosen['cost']}",
    )


def files_bytes(bundle: "Bundle") -> dict[str, int]:
    """Return the size in bytes of each file of a bundle by its name."""
    return {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir())}
