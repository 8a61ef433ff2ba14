"""The ONNX files of torchvision's networks, as torch.onnx writes them: read, quantized, and every integer compared.

Classification, detection and segmentation with random weights; both exporters; fixed sizes, and free ones: the batch,
or height and width of the one image that a detector takes. Results are kept after each file; repeating the command
converts those that are missing or were not converted.

    python benchmarks/torchvision_files.py [--models ssdlite320_mobilenet_v3_large] [--exporters legacy] [--size 64]
"""

import argparse
import io
import json
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine, machine_line, markdown_table, write_results
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models, segmentation

from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers

DETECTORS, SEGMENTERS = list_models(detection), list_models(segmentation)
MODELS = [
    "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121", "convnext_tiny",
    "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
]  # fmt: skip


class Tensors(nn.Module):
    """Returns the outputs of a network as a tuple, those of a detector for one image."""

    def __init__(self, network: nn.Module, *, detects: bool) -> None:
        super().__init__()
        self.network, self.detects = network, detects

    def forward(self, image: Tensor) -> Any:
        """Return the values of the dictionary that the network returns."""
        outputs = self.network([image])[0] if self.detects else self.network(image)
        return tuple(outputs.values()) if isinstance(outputs, dict) else outputs


def exported(name: str, exporter: str, *, free: bool, size: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the ONNX file of a network with random weights, and the shape of its input."""
    torch.manual_seed(0)
    detects = name in DETECTORS
    settings: dict[str, Any] = {"weights_backbone": None} if name in (*DETECTORS, *SEGMENTERS) else {}
    if detects and not name.startswith("ssd"):
        settings |= {"min_size": size, "max_size": size}
    network = Tensors(get_model(name, weights=None, num_classes=5, **settings).eval(), detects=detects)
    shape = (3, size, size) if detects else (2, 3, size, size)
    axes = {1: "height", 2: "width"} if detects else {0: "N"}
    file, image = io.BytesIO(), torch.rand(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            dimensions = {axis: torch.export.Dim(axes[axis], min=32 if detects else 1) for axis in axes}
            torch.onnx.export(
                network, (image,), file, dynamo=True, verbose=False, dynamic_shapes=(dimensions,) if free else None
            )
        else:
            torch.onnx.export(
                network, (image,), file, dynamo=False, opset_version=17, input_names=["image"],
                dynamic_axes={"image": axes} if free else None,
            )  # fmt: skip
    return file.getvalue(), shape


def converted(content: bytes, shape: tuple[int, ...]) -> dict[str, Any]:
    """Quantize a file on random images, and compare every integer of onnxruntime with the executor's."""
    read = read_onnx(content)
    (image,) = read.inputs
    samples = [{image.name: np.random.default_rng(i).random(shape, dtype=np.float32)} for i in range(2)]
    result = quantize_onnx(read, samples)
    comparison = compare_integers(result.graph, write_onnx(result.graph), samples[0])
    return {
        "differing": comparison.mismatches,
        "integers": sum(tensor.values for tensor in comparison.tensors),
        "integer_share": result.placement.integer_share,
    }


def measured(name: str, exporter: str, *, free: bool, size: int) -> dict[str, Any]:
    """Write and convert one file."""
    case = {"network": name, "exporter": exporter, "sizes": "free" if free else "fixed"}
    try:
        content, shape = exported(name, exporter, free=free, size=size)
    except Exception as error:  # of torch.onnx, which have no common base class
        return case | {"torch.onnx": f"{type(error).__name__}: {_reason(error)}"}
    try:
        return case | converted(content, shape)
    except Exception as error:  # also a fault of the reader is a row, and fails the command at its end
        traceback.print_exc()
        return case | {"refused": f"{type(error).__name__}: {error}"}


def _reason(error: Exception) -> str:
    """Return the first line of the innermost cause: torch.onnx wraps it in advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error).strip().partition("\n")[0].partition(" (unhinted")[0][:120]


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    case = [result["network"], result["exporter"], result["sizes"]]
    if "torch.onnx" in result:
        return [*case, f"not written: {result['torch.onnx']}".replace("|", " "), ""]
    if "refused" in result:
        return [*case, f"refused: {result['refused']}", ""]
    return [*case, f"{result['differing']} of {result['integers']:,}", f"{100 * result['integer_share']:.4g} %"]


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per file."""
    header = ["network", "exporter", "sizes", "differing integers", "MACs on integers"]
    return (
        "ONNX files of torchvision's networks, random weights (`python benchmarks/torchvision_files.py`)\n\n"
        f"{markdown_table(header, [row(result) for result in content['results']])}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Convert the files and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--exporters", nargs="+", default=["dynamo", "legacy"])
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    place = RESULTS / "torchvision_files.json"
    kept = json.loads(place.read_text())["results"] if place.exists() else []
    results = [result for result in kept if result.get("differing") == 0 or "torch.onnx" in result]
    for name in arguments.models:
        for exporter, free in ((exporter, free) for exporter in arguments.exporters for free in (False, True)):
            case = (name, exporter, "free" if free else "fixed")
            if case in {(result["network"], result["exporter"], result["sizes"]) for result in results}:
                continue
            results.append(measured(name, exporter, free=free, size=arguments.size))
            results.sort(key=lambda result: MODELS.index(result["network"]) if result["network"] in MODELS else -1)
            content = {"machine": machine(), "results": results}
            write_results("torchvision_files", content, table(content))
    assert not any("refused" in result or result.get("differing") for result in results)


if __name__ == "__main__":
    main()
