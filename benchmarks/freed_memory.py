"""Time of a training step with the allocator settings of `cpt train`, which keep freed memory in the process.

One thread. Steps with and without the settings alternate in processes of their own, because an allocator's settings
cannot be undone; times are medians over a process's steps, in processor time including the kernel's page handling.

    python benchmarks/freed_memory.py [--rounds 3] [--steps 8]
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from measuring import machine, machine_line, markdown_table, median_ratio, write_results
from training_steps import Step, training_step

from cpt_deploy.models import build_model
from cpt_deploy.models.language import build_language_model, preparing_arguments
from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.tasks.text_generation.evaluation import scores_of, token_losses
from cpt_deploy.training.loop.allocator_settings import freed_memory_kept

VOCABULARY, ROWS, TOKENS = 10_000, 20, 35
PLAIN, KEPT = "as the system has it", "kept"


def language_step(hidden: int) -> Step:
    """Return a step of a two-layer LSTM on chunks of the usual size for the Penn Treebank."""
    network = build_language_model("lstm-lm", VOCABULARY, embedding=hidden, hidden=hidden, dropout=0.0)
    inputs, shapes, states = preparing_arguments(network, VOCABULARY)
    config = QuantizationConfig(min_bits=5, max_bits=8)
    model = prepare(network, inputs, config, dynamic_shapes=shapes, states=states).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens, targets = torch.randint(VOCABULARY, (2, ROWS, TOKENS))

    numbers = itertools.count()

    def step() -> None:
        model.set_step(next(numbers))
        losses, _ = token_losses(scores_of(model, model.signature, tokens, None)[0], targets)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()

    return step


def image_step(name: str, batch: int) -> Step:
    """Return a step of an image classifier on 32x32 images."""
    network = build_model(name, num_classes=10, in_channels=3, input_size=(32, 32))
    model = (
        prepare(network, torch.zeros(2, 3, 32, 32), QuantizationConfig()).train().to(memory_format=torch.channels_last)
    )
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return training_step(model, x, torch.randint(10, (batch,)))


STEPS = {
    "LSTM of 128, 10,000 words": lambda: language_step(128),
    "LSTM of 650, 10,000 words": lambda: language_step(650),
    "resnet20, batch 128": lambda: image_step("resnet20", 128),
    "resnet20, batch 512": lambda: image_step("resnet20", 512),
}


def step_seconds(name: str, mode: str, count: int) -> float:
    """Return the median time of a step, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with freed_memory_kept() if mode == KEPT else nullcontext():
        step = STEPS[name]()
        for _ in range(2):
            step()
        times = []
        for _ in range(count):
            begin = time.process_time()
            step()
            times.append(time.process_time() - begin)
    return statistics.median(times)


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Measure both settings in alternation."""
    times: dict[str, list[float]] = {PLAIN: [], KEPT: []}
    for _ in range(rounds):
        for mode, values in times.items():
            command = [sys.executable, __file__, "--child", name, mode, "--steps", str(steps)]
            values.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    medians = {mode: 1e3 * statistics.median(values) for mode, values in times.items()}
    return {"step": name, "milliseconds": medians, "ratio": 1 / median_ratio(times[PLAIN], times[KEPT])}


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per step."""
    rows = [
        [r["step"], *(f"{r['milliseconds'][mode]:.0f} ms" for mode in (PLAIN, KEPT)), f"{r['ratio']:.2f}"]
        for r in content["results"]
    ]
    return (
        "Processor time of a quantized training step on one thread, by what happens to freed memory; medians of "
        "processes that take turns (`python benchmarks/freed_memory.py`)\n\n"
        f"{markdown_table(['step', PLAIN, KEPT, 'ratio'], rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--child", nargs=2, metavar=("STEP", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(step_seconds(*arguments.child, arguments.steps)))
        return
    results = [measure(name, arguments.rounds, arguments.steps) for name in STEPS]
    content = {"machine": machine(), "results": results}
    write_results("freed_memory", content, table(content))


if __name__ == "__main__":
    main()
