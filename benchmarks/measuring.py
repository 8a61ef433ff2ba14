"""Shared by all benchmarks: interleaved timing, a description of the machine, and writing results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpt_deploy
from cpt_deploy.validation import read_cpu, software_versions
from cpt_deploy.validation.performance.timing import interleaved, median_ratio

__all__ = ["interleaved", "machine", "machine_line", "markdown_table", "median_ratio", "write_results"]

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def machine() -> dict[str, Any]:
    """Return the processor, its relevant instruction sets, and versions."""
    cpu = read_cpu()
    packages = ["cpt-deploy", "torch", "torchvision", "triton", "torchao", "onnx", "onnxruntime", "numpy"]
    return {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "flags": list(cpu.flags or ()),
        "versions": {"cpt-deploy": cpt_deploy.__version__, **software_versions(packages)},
    }


def machine_line(info: Mapping[str, Any]) -> str:
    """Return the machine and the relevant versions as one line for below a table."""
    if "gpu" in info:
        gpu, versions = (
            info["gpu"],
            ", ".join(
                f"{name} {info['versions'][name]}"
                for name in ("torch", "triton", "torchao")
                if name in info["versions"]
            ),
        )
        return (
            f"Machine: {gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}; "
            f"{versions}; {info['cpu']}, {info['cores']} cores."
        )
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in ("onnxruntime", "torch"))
    return f"Machine: {info['cpu']}, {info['cores']} cores, {' '.join(info['flags'])}; {versions}."


def write_results(name: str, content: Mapping[str, Any], table: str, folder: Path = RESULTS) -> None:
    """Write `NAME.json` and `NAME.md`, print the table, and update its copies in the docs for the default folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    _replace(folder / f"{name}.md", table + "\n")
    if folder != RESULTS:
        print(table)
        return
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before, marker, rest = page.read_text().partition(f"<!-- results/{name}.md -->\n")
        if marker:
            _, end, after = rest.partition("<!-- end -->")
            _replace(page, f"{before}{marker}{table}\n{end}{after}")
    print(table)


def _replace(path: Path, text: str) -> None:
    """Write a file at once, so that an interrupted program leaves the earlier one whole."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text)
    unfinished.replace(path)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
