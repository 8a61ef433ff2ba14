"""The whole path on Fashion-MNIST, by the commands that a user would type, and its results.

Trains ResNet-20 with CPT 3-8/8 (or takes a finished run), exports it, validates all 10,000 test images in
onnxruntime, serves it and predicts over HTTP; then compares size and latency with the float32 export of the same net.

    CPT_DATA_DIR=… python benchmarks/fashion_mnist.py [--run runs/fashion] [--epochs 6] [--bits 8 4]
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
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
from PIL import Image

from cpt_deploy.bundle import Bundle
from cpt_deploy.data import load_images
from cpt_deploy.export import write_float_onnx
from cpt_deploy.training import load_run

CPT = [sys.executable, "-m", "cpt_cli"]


def command(*arguments: str) -> dict[str, Any]:
    """Run a command of the project with `--json` and return what it prints."""
    print("$ cpt", *arguments, file=sys.stderr, flush=True)
    finished = subprocess.run([*CPT, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def predict_over_http(bundle: Path, index: int) -> dict[str, Any]:
    """Serve a bundle, send one test image as a PNG, and return label and answer."""
    images = load_images("fashion-mnist", split="test", root=None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([*CPT, "serve", str(bundle), "--port", str(port), "--quiet"])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            Image.fromarray(images.image(index)).save(path)
            answer = command("predict", str(path), "--url", url)
    finally:
        server.terminate()
        code = server.wait(timeout=30)
    return {
        "true_label": images.classes[images.labels[index]],
        "predictions": answer["results"][0]["predictions"],
        "server_exit_code": code,
    }


def _wait_until_ready(url: str) -> None:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def against_float(run: Path, bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Compare a bundle's file with the float32 export of the run's network, on one thread."""
    model = load_run(run).model
    float_file = write_float_onnx(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {
        "float32": onnxruntime.InferenceSession(float_file, options, providers=["CPUExecutionProvider"]),
        "integer": onnxruntime.InferenceSession(bundle.onnx_path, options, providers=["CPUExecutionProvider"]),
    }
    result: dict[str, Any] = {
        "bytes": {"float32": len(float_file), "integer": bundle.onnx_path.stat().st_size},
        "milliseconds": {},
        "speedup": {},
    }
    for batch in (1, 32):
        feed = {"image": torch.randn(batch, *model.signature.inputs[0].shape).numpy()}
        times = interleaved({k: partial(s.run, None, feed) for k, s in sessions.items()}, rounds=rounds)
        result["milliseconds"][str(batch)] = {k: 1e3 * statistics.median(v) for k, v in times.items()}
        result["speedup"][str(batch)] = median_ratio(times["float32"], times["integer"])
    return result


def row(entry: dict[str, Any]) -> list[str]:
    """Return the results at one bit-width as a row of the table."""
    validation, files = entry["validation"], entry["against_float"]
    accuracy = {r["name"]: r for r in validation["runtimes"]}
    low, high = accuracy["onnxruntime"]["interval_95"]
    integers = validation["integers"]
    return [
        f"{entry['bits']} bits",
        f"{100 * accuracy['trained']['accuracy']:.2f} %" if "trained" in accuracy else "",
        f"{100 * accuracy['executor']['accuracy']:.2f} %",
        f"{100 * accuracy['onnxruntime']['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f})",
        f"{integers['mismatching']} of {integers['compared']:,}",
        f"{files['bytes']['integer'] / 1e3:.0f} kB ({files['bytes']['integer'] / files['bytes']['float32']:.3f})",
        f"{files['speedup']['1']:.2f}x, {files['speedup']['32']:.2f}x",
    ]


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per bit-width."""
    header = [
        "weights", "trained model, 8 bits", "integer executor", "onnxruntime (95 % interval)", "integers that differ",
        "model.onnx (of float32)", "speed-up over float32, batch 1, 32",
    ]  # fmt: skip
    return (
        f"ResNet-20, CPT 3-8/8 bits, {content['report']['epochs']:g} epochs of Fashion-MNIST on the CPU, all 10,000 "
        "test images (`python benchmarks/fashion_mnist.py`)\n\n"
        f"{markdown_table(header, [row(entry) for entry in content['bits']])}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Run the path and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run instead of a new one")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    run = arguments.run or Path("runs/benchmark-fashion-mnist")
    if arguments.run is None:
        command(
            "train",
            "fashion-mnist-resnet20",
            "precision.min_bits=3",
            f"train.epochs={arguments.epochs}",
            "--out",
            str(run),
        )
    entries = []
    for bits in arguments.bits:
        bundle = run / f"bundle-{bits}bit"
        command("export", str(run), "--bits", str(bits))
        command("validate", str(bundle), "--data", "fashion-mnist", "--max-drop", "100")
        opened = Bundle.open(bundle)
        entries.append(
            {
                "bits": bits,
                "validation": opened.validation,
                "against_float": against_float(run, opened, arguments.rounds),
            }
        )
    report = json.loads((run / "report.json").read_text())
    served = predict_over_http(run / f"bundle-{arguments.bits[0]}bit", index=1)
    content = {"machine": machine(), "report": report, "bits": entries, "served": served}
    write_results("fashion_mnist", content, table(content), whole=measures_all(parser, arguments, "bits"))


if __name__ == "__main__":
    main()
