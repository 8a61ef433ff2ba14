"""What all benchmarks share: interleaved timing, a description of the machine, and where results are written."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpt_deploy.validation.hardware import read_cpu, software_versions

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def interleaved(runs: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Time several callables in turn, in reversed order every other round, so that drift hits all alike.

    Returns:
        Seconds of each round, by name.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_index in range(rounds):
        order = list(runs) if round_index % 2 == 0 else list(reversed(runs))
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median over rounds of one time divided by the other."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def machine() -> dict[str, Any]:
    """Return processor, instruction sets that matter here, and versions."""
    cpu = read_cpu()
    packages = ["cpt-deploy", "torch", "torchvision", "onnx", "onnxruntime", "numpy"]
    return {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "flags": list(cpu.flags or ()),
        "versions": software_versions(packages),
    }


def machine_line(info: Mapping[str, Any]) -> str:
    """Return the machine and the versions that matter as one line under a table."""
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in ("onnxruntime", "torch"))
    return f"Machine: {info['cpu']}, {info['cores']} cores, {' '.join(info['flags'])}; {versions}."


def write_results(name: str, content: Mapping[str, Any], table: str) -> None:
    """Write `results/NAME.json` and `results/NAME.md`, refresh the README's copy of the table, and print it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table + "\n")
    before, marker, rest = README.read_text().partition(f"<!-- results/{name}.md -->\n")
    if marker:
        _, end, after = rest.partition("<!-- end -->")
        README.write_text(f"{before}{marker}{table}\n{end}{after}")
    print(table)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
