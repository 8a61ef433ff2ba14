"""Latency and size in onnxruntime: our integer export, the float32 export, and onnxruntime's own static quantization.

All are of the same network and run in one interleaved measurement on one thread; the integer export in both of its
forms, portable and native.

    python benchmarks/onnx_latency.py [--rounds 40] [--batches 1 8]
"""

import argparse
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import onnxruntime
import torch
from measuring import (
    interleaved,
    machine,
    machine_line,
    markdown_table,
    measures_all,
    median_ratio,
    write_results,
)

from cpt_deploy.export import write_float_onnx, write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_native, prepare
from cpt_deploy.validation import static_quantization

NETWORKS = {"resnet20": (3, 32, 32), "torchvision/resnet18": (3, 224, 224), "torchvision/mobilenet_v2": (3, 224, 224)}
BARS = {"resnet20": 2.0, "torchvision/resnet18": 3.5, "torchvision/mobilenet_v2": 2.0}


def images(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return smooth random images with some noise; latency does not depend on their content."""
    coarse = torch.randn(count, shape[0], 8, 8)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    return smooth + 0.2 * torch.randn(count, *shape)


def calibrated_model(name: str, shape: tuple[int, int, int]) -> QuantizedModel:
    """Return a network with random weights and known ranges."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=10 if shape[1] == 32 else 1000, in_channels=3, input_size=shape[1:])
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig())
    calibrate(model, [images(8, shape) for _ in range(4)])
    return model.eval()


def files(name: str, shape: tuple[int, int, int]) -> dict[str, bytes]:
    """Return the ONNX files of one network with random weights."""
    model = calibrated_model(name, shape)
    floats, portable = write_float_onnx(model), write_onnx(freeze(model))
    make_native(model)
    return {
        "cpt-deploy": portable,
        "native": write_onnx(freeze(model)),
        "float32": floats,
        "onnxruntime static": static_quantization(floats, [{"image": images(8, shape).numpy()} for _ in range(4)]),
    }


def measure(name: str, shape: tuple[int, int, int], batch: int, rounds: int) -> dict[str, Any]:
    """Time the files of one network at one batch size."""
    models = files(name, shape)
    feed = {"image": images(batch, shape).numpy()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {
        key: onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for key, data in models.items()
    }
    times = interleaved({key: partial(s.run, None, feed) for key, s in sessions.items()}, rounds=rounds)
    return {
        "network": name,
        "batch": batch,
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "speedup": median_ratio(times["float32"], times["cpt-deploy"]),
        "against_static": median_ratio(times["onnxruntime static"], times["cpt-deploy"]),
        "against_native": median_ratio(times["native"], times["cpt-deploy"]),
        "bytes": {key: len(data) for key, data in models.items()},
        "bar": BARS[name],
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per network and batch."""
    rows = [
        [
            r["network"],
            str(r["batch"]),
            *(f"{r['milliseconds'][key]:.2f}" for key in ("float32", "onnxruntime static", "cpt-deploy")),
            f"**{r['speedup']:.2f}x** (bar {r['bar']})",
            f"{r['against_static']:.2f}x",
            f"{r['against_native']:.2f}x",
            f"{r['bytes']['cpt-deploy'] / r['bytes']['float32']:.3f}",
            f"{r['bytes']['onnxruntime static'] / r['bytes']['float32']:.3f}",
        ]
        for r in content["results"]
    ]
    header = [
        "network", "batch", "float32 ms", "onnxruntime static ms", "cpt-deploy ms", "speed-up over float32",
        "over static", "over native", "size / float32", "static size / float32",
    ]  # fmt: skip
    return (
        "onnxruntime on one thread, medians of an interleaved run (`python benchmarks/onnx_latency.py`)\n\n"
        f"{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    results = [
        measure(name, shape, batch, arguments.rounds if shape[1] == 32 or batch == 1 else arguments.rounds // 2)
        for name, shape in NETWORKS.items()
        for batch in arguments.batches
    ]
    content = {"machine": machine(), "results": results}
    write_results("onnx_latency", content, table(content), whole=measures_all(parser, arguments, "batches"))


if __name__ == "__main__":
    main()
