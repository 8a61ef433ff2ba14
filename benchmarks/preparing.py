"""Time of `prepare`: the conversion, the comparison with the given network, and the trial of its deployment.

python benchmarks/preparing.py [--rounds 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import machine, machine_line, markdown_table, measures_all, write_results
from torch import nn

from cpt_deploy.models import build_model
from cpt_deploy.preparation import try_out
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.conversion.comparison.equivalence import Reference
from cpt_deploy.quantization.conversion.comparison.handed_in import HandedIn
from cpt_deploy.quantization.conversion.example_inputs import read_example

NETWORKS = {
    "resnet20": (3, 32, 32),
    "torchvision/resnet18": (3, 224, 224),
    "torchvision/mobilenet_v2": (3, 224, 224),
    "torchvision/efficientnet_b0": (3, 224, 224),
    "torchvision/vit_b_32": (3, 224, 224),
}
WHOLE, COMPARISON, TRIAL = "conversion and comparison", "comparison", "trial"


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(network: nn.Module, prepared: QuantizedModel, inputs: torch.Tensor) -> None:
    """Compare a network with its converted form, as `prepare` does."""
    given = HandedIn.of(network)
    with given.untouched():
        Reference.of(given, read_example(given.network, inputs)).check(prepared)


def measure(name: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Time the parts of preparing one network, interleaved."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=1000, in_channels=shape[0], input_size=shape[1:])
    config, inputs = QuantizationConfig(), torch.zeros(2, *shape)
    prepared = prepare(network, inputs, config)
    parts: dict[str, Callable[[], object]] = {
        WHOLE: lambda: prepare(network, inputs, config),
        COMPARISON: lambda: compare(network, prepared, inputs),
        TRIAL: lambda: try_out(prepared),
    }
    times: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, function in parts.items():
            times[part].append(seconds(function))
    return {
        "network": name,
        "path": prepared.conversion.path,
        "seconds": {part: statistics.median(values) for part, values in times.items()},
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per network."""
    rows = [
        [entry["network"], entry["path"], *(f"{entry['seconds'][part]:.2f}" for part in (WHOLE, COMPARISON, TRIAL))]
        for entry in content["results"]
    ]
    header = ["network", "becomes", "conversion and comparison, s", "of it the comparison, s", "the trial beside it, s"]
    return (
        "What `prepare` takes, one thread, medians (`python benchmarks/preparing.py`)\n\n"
        f"{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(name, NETWORKS[name], arguments.rounds) for name in arguments.networks]
    content = {"machine": machine(), "results": results}
    write_results("preparing", content, table(content), whole=measures_all(parser, arguments, "networks"))


if __name__ == "__main__":
    main()
