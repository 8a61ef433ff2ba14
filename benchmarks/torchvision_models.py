"""Every family of torchvision classifiers: prepare, one training step, freeze, ONNX, onnxruntime.

The table says for each network whether it converts, which operators are left in float in onnxruntime's optimized
graph, how many integers differ between the integer executor and onnxruntime, and latency relative to float32.

    python benchmarks/torchvision_models.py [--models resnet18 vgg11_bn] [--size 224]
"""

import argparse
import statistics
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from model_families import convert, count_differences, image_network
from numpy.typing import NDArray

from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators
from cpt_deploy.errors import ConversionError
from cpt_deploy.export import write_float_onnx

MODELS = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger")


def latencies(
    float_model: bytes, integer_model: bytes, image: NDArray[np.float32], rounds: int
) -> dict[str, list[float]]:
    """Time both files on one image, float32 (1, C, H, W), and one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    feed = {"image": image}
    sessions = {
        name: onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for name, data in (("float32", float_model), ("integer", integer_model))
    }
    return interleaved({k: partial(s.run, None, feed) for k, s in sessions.items()}, rounds=rounds)


def measure(name: str, size: int, rounds: int) -> dict[str, Any]:
    """Take one network through the whole path."""
    network = image_network(f"torchvision/{name}", size, classes=1000)
    try:
        converted = convert(network)
    except ConversionError as error:
        return {"network": name, "converts": False, "reason": str(error)}
    integer_model = converted.onnx
    found = count_differences(converted.graph, integer_model, network.inputs(4))
    float_model = write_float_onnx(converted.model)
    times = latencies(float_model, integer_model, network.inputs(1).numpy(), rounds)
    operators = optimized_operators(integer_model)
    return {
        "network": name,
        "converts": True,
        "loss": converted.loss,
        "integer_operators": {k: v for k, v in operators.items() if k.startswith(INTEGER_KERNELS)},
        "float_operators": float_operators(integer_model),
        "differing_codes": found.differing,
        "codes": found.integers,
        "milliseconds": {k: 1e3 * statistics.median(v) for k, v in times.items()},
        "speedup": median_ratio(times["float32"], times["integer"]),
        "size_ratio": len(integer_model) / len(float_model),
    }


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    if not result["converts"]:
        return [result["network"], "no", result["reason"], "", "", "", ""]
    return [
        result["network"],
        "yes",
        ", ".join(f"{count} {name}" for name, count in result["float_operators"].items()) or "none",
        ", ".join(f"{count} {name}" for name, count in sorted(result["integer_operators"].items())),
        f"{result['differing_codes']} of {result['codes']:,}",
        f"{result['speedup']:.2f}x",
        f"{result['size_ratio']:.3f}",
    ]


def main() -> None:
    """Measure the networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        results.append(measure(name, 299 if name == "inception_v3" else arguments.size, arguments.rounds))
        print(" | ".join(row(results[-1])), flush=True)
    header = [
        "network", "converts", "operators left in float", "integer operators", "differing codes",
        "speed-up over float32", "size / float32",
    ]  # fmt: skip
    info = machine()
    table = (
        "torchvision classifiers after one CPT step, in onnxruntime's optimized graph; one image, one thread "
        "(`python benchmarks/torchvision_models.py`)\n\n"
        + markdown_table(header, [row(result) for result in results])
        + f"\n\n{machine_line(info)}"
    )
    assert np.isfinite([r["loss"] for r in results if r["converts"]]).all()
    write_results("torchvision_models", {"machine": info, "results": results}, table)


if __name__ == "__main__":
    main()
