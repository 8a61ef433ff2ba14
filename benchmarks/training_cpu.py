"""Time and memory of a training step on one CPU thread: float32, bfloat16 autocast, other quantizers, and cpt-deploy.

All variants of a network start from the same weights and run in one interleaved measurement. On processors without
bfloat16 units the results have another name.

    python benchmarks/training_cpu.py [--rounds 9] [--networks resnet20 ...]
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from torch import nn
from training_steps import peak_bytes, training_step
from training_variants import TransformerBlock, fake_quantized, like_the_authors

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.quantization.training_step.products import has_bf16_units

BASE = "float32 channels-last"
BITS = 6
CONVOLUTIONAL = {"resnet20": 128, "resnet38": 64, "mobilenetv2": 32}
MEMORY = ("resnet38", 128)
BLOCK = "Transformer block"
COMPUTE = ("modules", "float32", "bf16") if has_bf16_units() else ("modules", "float32")
BARS = {"resnet20": 0.8, "resnet38": 0.8, BLOCK: 0.5} if has_bf16_units() else {"resnet20": 1.15, "resnet38": 1.15}


def convolutional(name: str, batch: int) -> dict[str, Callable[[], None]]:
    """Return a step of each variant of an image classifier on 32x32 images."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=10, in_channels=3, input_size=(32, 32)).train()
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    rows = x.contiguous(memory_format=torch.channels_last)

    def last(model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).to(memory_format=torch.channels_last)

    steps = {
        "float32": training_step(copy.deepcopy(network), x, labels),
        BASE: training_step(last(network), rows, labels),
        "bf16 autocast": training_step(last(network), rows, labels, autocast=True),
        "torch fake-quantize": training_step(last(fake_quantized(network)), rows, labels),
        "authors' scheme": training_step(last(like_the_authors(network, BITS)), rows, labels),
    }
    prepared = prepare(network, torch.zeros(2, 3, 32, 32), QuantizationConfig()).train()
    prepared.set_bits(BITS, 8)
    for compute in COMPUTE:
        model = last(prepared)
        model.compute = compute
        steps[f"cpt-deploy {compute}"] = training_step(model, rows, labels)
    return steps


def transformer() -> dict[str, Callable[[], None]]:
    """Return a step of each variant of a Transformer block, 512/2048 wide, on 16 sequences of 128."""
    torch.manual_seed(0)
    block = TransformerBlock(512, 2048, heads=8).train()
    x, labels = torch.randn(16, 128, 512), torch.randint(512, (16,))
    steps = {
        BASE: training_step(copy.deepcopy(block), x, labels),
        "bf16 autocast": training_step(copy.deepcopy(block), x, labels, autocast=True),
        "torch fake-quantize": training_step(fake_quantized(block), x, labels),
        "authors' scheme": training_step(like_the_authors(block, BITS), x, labels),
    }
    for compute in COMPUTE:
        model = copy.deepcopy(block)
        model.quantize(BITS, compute)
        steps[f"cpt-deploy {compute}"] = training_step(model, x, labels)
    return steps


def measure(name: str, batch: int | str, steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, Any]:
    """Measure the processor time of all variants of a network on one thread, and their memory."""
    times = interleaved(steps, rounds=rounds, warmup=2, clock=time.process_time)
    memory = {key: peak_bytes(step) for key, step in steps.items()}
    return {
        "network": name,
        "batch": batch,
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "time_ratio": {key: 1 / median_ratio(times[BASE], values) for key, values in times.items()},
        "bytes": memory,
        "memory_ratio": {key: value / memory[BASE] for key, value in memory.items()},
        "bar": BARS.get(name),
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per variant."""
    results, peaks = content["results"], content["memory_bytes"]
    variants = list(results[0]["milliseconds"])
    header = ["step", *(f"{r['network']}, {r['batch']}" for r in results), "memory, {}, {}".format(*MEMORY)]

    def cell(result: dict[str, Any], variant: str) -> str:
        if variant not in result["milliseconds"]:
            return "-"
        ratio = f"{result['time_ratio'][variant]:.2f}"
        bar = f" (bar {result['bar']})" if result["bar"] and variant == variants[-1] else ""
        return f"{result['milliseconds'][variant]:.0f} ms, {ratio}{bar}"

    rows = [
        [variant, *(cell(r, variant) for r in results), f"{peaks[variant] / peaks[BASE]:.2f}"] for variant in variants
    ]
    return (
        "One thread; processor time of a step (forward, loss, backward, SGD), its ratio to float32 channels-last, and "
        "the ratio of peak memory; medians of an interleaved run (`python benchmarks/training_cpu.py`)\n\n"
        f"{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", default=[*CONVOLUTIONAL, BLOCK])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated.*")
    builders = {name: partial(convolutional, name, batch) for name, batch in CONVOLUTIONAL.items()}
    batches: dict[str, int | str] = {**CONVOLUTIONAL, BLOCK: "16x128"}
    builders[BLOCK] = transformer
    results = [measure(name, batches[name], builders[name](), arguments.rounds) for name in arguments.networks]
    peaks = {key: peak_bytes(step) for key, step in convolutional(*MEMORY).items()}
    name = "training_cpu" if has_bf16_units() else "training_cpu_without_bf16"
    content = {"machine": machine(), "bits": BITS, "results": results, "memory_bytes": peaks}
    write_results(name, content, table(content), whole=measures_all(parser, arguments, "networks"))


if __name__ == "__main__":
    main()
