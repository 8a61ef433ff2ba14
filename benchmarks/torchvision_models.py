"""Every family of torchvision classifiers: prepare, one training step, freeze, ONNX, onnxruntime.

The table says for each network whether it converts, which operators are left in float in onnxruntime's optimized
graph, how many codes differ between the integer executor and onnxruntime, and latency against float32.

    python benchmarks/torchvision_models.py [--models resnet18 vgg11_bn] [--size 224]
"""

import argparse
import statistics
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from torch import nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.export import write_float_onnx, write_onnx
from cpt_deploy.freezing import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare, settle
from cpt_deploy.validation.operators import float_operators, optimized_operators
from cpt_deploy.validation.taps import add_taps

MODELS = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
INTEGER_KERNELS = ("QLinear", "QGemm")


def images(count: int, size: int) -> torch.Tensor:
    """Return smooth random images with some noise."""
    coarse = torch.randn(count, 3, 8, 8)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.2 * torch.randn(
        count, 3, size, size
    )


def training_step(model: QuantizedModel, size: int) -> float:
    """Take one SGD step at 3 bits and return the loss."""
    model.train().set_bits(3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = nn.functional.cross_entropy(model(images(4, size)), torch.tensor([1, 2, 3, 4]))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def count_differences(graph: IntegerGraph, model: bytes, size: int) -> tuple[int, int]:
    """Return differing codes and all codes between the executor and onnxruntime on four images."""
    x = images(4, size)
    names = list(graph.tensors)
    tapped = add_taps(model, names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tapped, options, providers=["CPUExecutionProvider"])
    served = session.run(names, {"image": x.numpy()})
    codes = IntegerExecutor(graph).trace(x)
    differing = sum(int((codes[name].numpy() != array).sum()) for name, array in zip(names, served, strict=True))
    return differing, sum(array.size for array in served)


def latencies(float_model: bytes, integer_model: bytes, size: int, rounds: int) -> dict[str, list[float]]:
    """Time both files on one image and one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    feed = {"image": images(1, size).numpy()}
    sessions = {
        name: onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for name, data in (("float32", float_model), ("integer", integer_model))
    }
    return interleaved({k: partial(s.run, None, feed) for k, s in sessions.items()}, rounds=rounds)


def measure(name: str, size: int, rounds: int) -> dict[str, Any]:
    """Take one network through the whole path."""
    torch.manual_seed(0)
    network = build_model(f"torchvision/{name}", num_classes=1000, in_channels=3, input_size=(size, size))
    try:
        model = prepare(network, QuantizationConfig(), (3, size, size))
    except ConversionError as error:
        return {"network": name, "converts": False, "reason": str(error)}
    loss = training_step(model, size)
    settle(model, [images(4, size) for _ in range(2)])
    graph = freeze(model.eval())
    integer_model = write_onnx(graph)
    differing, total = count_differences(graph, integer_model, size)
    float_model = write_float_onnx(model)
    times = latencies(float_model, integer_model, size, rounds)
    operators = optimized_operators(integer_model)
    return {
        "network": name,
        "converts": True,
        "loss": loss,
        "integer_operators": {k: v for k, v in operators.items() if k.startswith(INTEGER_KERNELS)},
        "float_operators": float_operators(integer_model),
        "differing_codes": differing,
        "codes": total,
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
