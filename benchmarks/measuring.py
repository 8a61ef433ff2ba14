"""Shared by all benchmarks: interleaved timing, a description of the machine, and writing results."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpt_deploy
from cpt_deploy.validation import read_cpu, software_versions
from cpt_deploy.validation.performance.timing import interleaved, median_ratio

__all__ = [
    "interleaved", "machine", "machine_line", "markdown_table", "measures_all", "median_ratio", "origin_line",
    "write_results",
]  # fmt: skip

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


def origin() -> dict[str, Any]:
    """Return the command that runs, the commit of its code, and whether code was changed since; None outside of git."""
    code = [".", ":!benchmarks/results", ":!docs", ":!README.md"]  # not what earlier results of the same run changed
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short=8", "HEAD"),
        "changed": None if changes is None else changes != "",
    }


def _git(*words: str) -> str | None:
    try:
        line = ["git", "-C", str(ROOT), *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def origin_line(content: Mapping[str, Any]) -> str:
    """Return the last line of a table, with the command and the commit that wrote it; empty if none is recorded."""
    if "origin" not in content:
        return ""
    origin = content["origin"]
    commit = f", commit {origin['commit']}{' with changes' if origin['changed'] else ''}" if origin["commit"] else ""
    return f"\n\nWritten by `{origin['command']}`{commit}."


def write_results(
    name: str, content: Mapping[str, Any], table: str, folder: Path = RESULTS, *, whole: bool = True
) -> None:
    """Print the table, write it with its origin as `NAME.json` and `NAME.md`, and for the default folder to the pages.

    Args:
        name: Name of the results.
        content: Everything that the table shows.
        table: The table.
        folder: Where to write.
        whole: Whether all that is published was measured; a part is printed alone, since it would replace the whole.
    """
    if not whole:
        print(f"{table}\n\nNothing was written: these are not all results that are published.")
        return
    content = {**content, "origin": origin()}
    table += origin_line(content)
    print(table)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    _replace(folder / f"{name}.md", table + "\n")
    if folder != RESULTS:
        return
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before, marker, rest = page.read_text().partition(f"<!-- results/{name}.md -->\n")
        if marker:
            _, end, after = rest.partition("<!-- end -->")
            _replace(page, f"{before}{marker}{table}\n{end}{after}")


def measures_all(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *options: str) -> bool:
    """Return whether the options that choose a part of the measurements have their defaults."""
    return all(getattr(arguments, option) == parser.get_default(option) for option in options)


def _replace(path: Path, text: str) -> None:
    """Write a file at once, so that an interrupted program leaves the earlier one whole."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text)
    unfinished.replace(path)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
