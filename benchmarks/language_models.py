"""Perplexity of a small two-layer LSTM on the Penn Treebank at CPT 5-8/8 and at static 8 bits, by `cpt train`.

The settings are those of `ptb-lstm`, but smaller and shorter, for two CPU cores. Finished runs are kept, unfinished
ones are resumed from their last checkpoint; results are written once both are finished.

    CPT_DATA_DIR=… python benchmarks/language_models.py [--runs runs/language-models] [--steps 10624] [--only cpt-5-8]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import machine, machine_line, markdown_table, write_results

CPT = [sys.executable, "-m", "cpt_cli"]
RECIPES = {"cpt-5-8": "ptb-lstm", "static-8": "ptb-lstm-static8"}


def settings(steps: int, size: int, seed: int) -> list[str]:
    """Return the settings that differ from the preset's."""
    return [
        f"model.args.embedding={size}",
        f"model.args.hidden={size}",
        "model.args.dropout=0.2",  # a small network trained for a few epochs underfits
        f"train.steps={steps}",
        "train.eval_batch_size=40",
        "lr.name=cosine",  # reaches zero within the run; waiting for a plateau would not lower it in so few epochs
        "train.eval_every=1 epoch",
        f"seed={seed}",
        "train.device=cpu",
    ]


def train(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a run, resume it, or read it if it is finished; return its report."""
    run = folder / f"{name}-seed{arguments.seed}"
    if not (run / "report.json").is_file():
        begun = (run / "recipe.yaml").is_file()
        overrides = settings(arguments.steps, arguments.size, arguments.seed)
        what = ["--resume", str(run)] if begun else [RECIPES[name], *overrides, "--out", str(run)]
        subprocess.run([*CPT, "train", *what, "--quiet"], check=True)
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def row(name: str, report: dict[str, Any]) -> list[str]:
    """Return a run as a row of the table."""
    return [
        {"cpt-5-8": "CPT 5-8/8", "static-8": "static 8/8"}[name],
        f"{report['valid']['metrics']['perplexity']:.2f}",
        f"{report['test']['metrics']['perplexity']:.2f}",
        f"{report['cost']['gbitops']:,.0f}",
        f"{report['cost']['saving']:.1%}",
    ]


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per run."""
    reports, size, seed = content["runs"], content["size"], content["seed"]
    header = ["precision", "valid perplexity", "test perplexity", "GBitOPs", "saving"]
    first = next(iter(reports.values()))
    return (
        f"Two-layer LSTM of {size} on the Penn Treebank, {first['steps']:,} steps ({first['epochs']:.2f} epochs), seed "
        f"{seed}, calibrated, at 8 bits (`python benchmarks/language_models.py`)\n\n"
        f"{markdown_table(header, [row(name, report) for name, report in reports.items()])}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Train the missing runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/language-models"))
    parser.add_argument("--steps", type=int, default=10624, help="1,328 are an epoch")
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(RECIPES), help="train this one; the other is read if it is finished")
    arguments = parser.parse_args()
    reports: dict[str, dict[str, Any]] = {}
    for name in RECIPES:
        finished = (arguments.runs / f"{name}-seed{arguments.seed}" / "report.json").is_file()
        if arguments.only in (None, name) or finished:
            reports[name] = train(name, arguments.runs, arguments)
    content = {"machine": machine(), "size": arguments.size, "seed": arguments.seed, "runs": reports}
    write_results("language_models", content, table(content), whole=list(reports) == list(RECIPES))


if __name__ == "__main__":
    main()
