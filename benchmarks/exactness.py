"""Compare every integer of every quantized tensor between the integer executor and onnxruntime, on whole test sets.

Each network takes some CPT steps on Fashion-MNIST (28x28, padded to 32x32), is calibrated and frozen with weights at 8
and at 4 bits, and all 10,000 test images are run in batches of 32 on one thread; the first images also one by one and
on two threads. Also measured: how far the trained model at these bits, by fake quantization, is from its integers.

    CPT_DATA_DIR=… python benchmarks/exactness.py [--networks resnet20 torchvision/resnet18] [--bits 8 4]
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, machine_line, markdown_table, measures_all, write_results
from torch import Tensor, nn

from cpt_deploy.bundle import OnnxRuntimeModel, Preprocessing
from cpt_deploy.bundle.runtime.cpu import VNNI_FLAGS
from cpt_deploy.data import ImageSet, eval_loader, load_images
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.validation.accuracy.statistics import mcnemar_exact
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs

NETWORKS = [
    "resnet20", "resnet38", "mobilenetv2", "torchvision/resnet18", "torchvision/resnet34", "torchvision/resnet50",
    "torchvision/mobilenet_v2", "torchvision/densenet121", "torchvision/efficientnet_b0",
]  # fmt: skip
STEPS, BATCH = 60, 64
LEARNING_RATES = {"torchvision/efficientnet_b0": 0.0005}
LEARNING_RATE = 0.02
SINGLE_IMAGES = 500
Batch = tuple[Tensor, Tensor]


def batches(images: ImageSet, size: int, limit: int) -> Iterator[Batch]:
    """Yield the first images, normalised and padded, float32 (N, 1, 32, 32), with their classes."""
    preprocessing = Preprocessing(size=(28, 28), channels=1, mean=(0.286,), std=(0.353,))
    done = 0
    for inputs, labels in eval_loader(images, preprocessing, size):
        taken = min(len(labels), limit - done)
        yield nn.functional.pad(inputs[:taken], (2, 2, 2, 2)), labels[:taken]
        done += taken
        if done >= limit:
            return


def trained_network(name: str, images: ImageSet) -> QuantizedModel:
    """Return a network after some steps at cycling bits."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=10, in_channels=1, input_size=(32, 32))
    model = prepare(network, torch.zeros(2, 1, 32, 32), QuantizationConfig()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATES.get(name, LEARNING_RATE), momentum=0.9)
    for step, (inputs, labels) in enumerate(batches(images, BATCH, STEPS * BATCH)):
        model.set_bits(3 + step % 6, 8)
        model.set_step(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


class Sessions:
    """A model in onnxruntime with its intermediate integers as outputs, on one thread and on two."""

    def __init__(self, model: bytes) -> None:
        observable = with_intermediate_outputs(model)
        self.names = [output.name for output in observable.intermediates]
        self.hidden = [output.name for output in observable.hidden]
        self.by_threads = {threads: OnnxRuntimeModel(observable.model, threads=threads) for threads in (1, 2)}
        self.plain = OnnxRuntimeModel(model, threads=1)

    def differences(self, inputs: Tensor, expected: dict[str, Tensor], threads: int) -> tuple[int, int]:
        """Return the numbers of differing and of all integers."""
        got = self.by_threads[threads].trace({"image": inputs.numpy()})
        counts = [(int((got[name] != expected[name].numpy()).sum()), got[name].size) for name in self.names]
        return sum(count[0] for count in counts), sum(count[1] for count in counts)


def evaluated_codes(model: QuantizedModel, graph: IntegerGraph) -> dict[str, Tensor]:
    """Return a dictionary that each evaluation of the trained model fills with the integers of its activations."""
    codes: dict[str, Tensor] = {}
    for name, quantizer in model.quantizers():

        def keep(_module: nn.Module, _inputs: object, y: Tensor, name: str = name) -> None:
            if name in graph.tensors:
                codes[name] = (torch.round(y / graph.tensors[name].scale) + graph.tensors[name].zero_point).byte()

        quantizer.register_forward_hook(keep)
    return codes


def measure(model: QuantizedModel, bits: int, train: ImageSet, test: ImageSet, limit: int) -> dict[str, Any]:
    """Calibrate and freeze a network at some bits and compare on the test images."""
    calibrate(model, (inputs for inputs, _ in batches(train, 128, 2560)), weight_bits=bits)
    graph = freeze(model, weight_bits=bits)
    executor, sessions, evaluated = IntegerExecutor(graph), Sessions(write_onnx(graph)), evaluated_codes(model, graph)
    counts: dict[str, list[int]] = {key: [0, 0] for key in ("batch 32", "batch 1", "2 threads", "trained")}
    right: dict[str, list[np.ndarray[Any, Any]]] = {"trained": [], "onnxruntime": []}

    def add(key: str, pair: tuple[int, int]) -> None:
        counts[key] = [a + b for a, b in zip(counts[key], pair, strict=True)]

    for index, (inputs, labels) in enumerate(batches(test, 32, limit)):
        expected = executor.trace(inputs)
        add("batch 32", sessions.differences(inputs, expected, 1))
        with torch.no_grad(), model.at_max_bits(bits):
            logits = model(inputs)
        pairs = [(int((expected[name] != codes).sum()), codes.numel()) for name, codes in evaluated.items()]
        add("trained", (sum(p[0] for p in pairs), sum(p[1] for p in pairs)))
        right["trained"].append((logits.argmax(1) == labels).numpy())
        right["onnxruntime"].append(sessions.plain.run({"image": inputs.numpy()})["logits"].argmax(1) == labels.numpy())
        if index * 32 < SINGLE_IMAGES:
            add("2 threads", sessions.differences(inputs, expected, 2))
            for i in range(len(labels)):
                one = {name: codes[i : i + 1] for name, codes in expected.items()}
                add("batch 1", sessions.differences(inputs[i : i + 1], one, 1 + i % 2))
    trained, served = (np.concatenate(right[name]) for name in ("trained", "onnxruntime"))
    lost, won = int((trained & ~served).sum()), int((served & ~trained).sum())
    return {
        "bits": bits,
        "images": len(trained),
        "tensors": len(sessions.names),
        "hidden": sessions.hidden,
        "integers": {key: {"differing": c[0], "compared": c[1]} for key, c in counts.items()},
        "accuracy": {"trained": float(trained.mean()), "onnxruntime": float(served.mean())},
        "mcnemar_p": mcnemar_exact(lost, won),
        "only_trained_right": lost,
        "only_onnxruntime_right": won,
    }


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    integers, accuracy = result["integers"], result["accuracy"]
    exact = [f"{integers[key]['differing']:,} of {integers[key]['compared']:,}" for key in ("batch 32", "batch 1")]
    return [
        result["network"],
        str(result["bits"]),
        *exact,
        f"{integers['2 threads']['differing']:,} of {integers['2 threads']['compared']:,}",
        f"{100 * integers['trained']['differing'] / integers['trained']['compared']:.2f} %",
        f"{100 * accuracy['trained']:.2f} / {100 * accuracy['onnxruntime']:.2f}",
        f"{result['mcnemar_p']:.2f}",
        "VNNI" if VNNI_FLAGS & set(result["flags"]) else "exact kernels",
    ]


def main() -> None:
    """Measure the networks; results that are already in the folder are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-exactness"), help="keeps finished networks")
    parser.add_argument("--table", action="store_true", help="only write the table of what is finished in the folder")
    arguments = parser.parse_args()
    train, test = (load_images("fashion-mnist", split=split, root=None) for split in ("train", "test"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for bits, name in [] if arguments.table else itertools.product(arguments.bits, arguments.networks):
        path = arguments.folder / f"{name.replace('/', '-')}-{bits}bit-{arguments.images}.json"
        if not path.is_file():
            result = measure(trained_network(name, train), bits, train, test, arguments.images)
            path.write_text(json.dumps({"network": name, "flags": machine()["flags"], **result}))
        print(" | ".join(row(json.loads(path.read_text()))), flush=True)
    finished = [json.loads(path.read_text()) for path in arguments.folder.glob(f"*-{arguments.images}.json")]
    results = sorted(finished, key=lambda result: (NETWORKS.index(result["network"]), -result["bits"]))
    content = {"machine": machine(), "results": results}
    complete = len(NETWORKS) * len(parser.get_default("bits"))
    whole = measures_all(parser, arguments, "images") and len(results) == complete
    write_results("exactness", content, table(content), whole=whole)


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, a row per network and bit-width."""
    results = content["results"]
    processors = " or ".join(dict.fromkeys(" ".join(result["flags"]) for result in results))
    header = [
        "network", "bits of weights", "differing integers, batch 32", "batch 1", "2 threads",
        "trained against executor", "accuracy trained / onnxruntime, %", "McNemar p", "sums",
    ]  # fmt: skip
    info = content["machine"] | {"flags": [processors]}
    title = (
        "Integers of every quantized tensor in onnxruntime that differ from the integer executor's, on all "
        f"{results[0]['images']:,} Fashion-MNIST test images (batch 1 and 2 threads: {SINGLE_IMAGES}); share of codes "
        "in which the trained model, evaluated by fake quantization in float32, differs from its integers "
        f"(`python benchmarks/exactness.py`, networks after {STEPS} CPT steps); sums: by VNNI, or on a processor "
        "without it by onnxruntime's exact kernels\n\n"
    )
    return f"{title}{markdown_table(header, [row(result) for result in results])}\n\n{machine_line(info)}"


if __name__ == "__main__":
    main()
