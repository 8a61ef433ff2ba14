"""Training of the two built-in language models beside an earlier commit: seconds a step, and perplexity.

The same recipe, seed and number of steps in both trees, in turn, each in a process of its own on one thread. A tree is
a checkout with an environment in `.venv` (and kernels compiled for it). Ratios are now / before of each round's step.

    CPT_DATA_DIR=… python benchmarks/text_training.py --earlier TREE [--rounds 5] [--steps 60]
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import RESULTS, machine, machine_line, markdown_table, write_results

COMMON = ["train.calibration_batches=4", "train.eval_batch_size=100", "train.device=cpu", "seed=0"]
RECIPES = {
    "ptb-lstm": ["model.args.embedding=200", "model.args.hidden=200", "model.args.dropout=0.0"],
    "tinyshakespeare-transformer": ["precision.min_bits=4"],
}
#: The first steps, in which libraries choose their kernels, are not counted.
WARMUP = 10


def trained(tree: Path, recipe: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train a recipe in a tree; return its test perplexity, and the median of seconds a step by its own log."""
    lengths = [f"train.steps={steps}", f"train.eval_every={steps} steps", "train.log_every=1"]
    command = [tree / ".venv/bin/cpt", "train", recipe, *RECIPES[recipe], *COMMON, *lengths, "--out", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr}")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file) if row["seconds"]]
    times = [later - before for (_, before), (_, later) in pairwise(rows)][WARMUP:]
    return {
        "seconds": statistics.median(times),
        "perplexity": _perplexity(json.loads((folder / "report.json").read_text())),
    }


def _perplexity(report: dict[str, Any]) -> float:
    test = report["test"]
    return float(test["metrics"]["perplexity"] if "metrics" in test else test["perplexity"])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, help="tree of the earlier commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    trees = {"before": arguments.earlier.resolve(), "now": Path(__file__).resolve().parents[1]}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for recipe in RECIPES:
        for number in range(arguments.rounds):
            for name, tree in list(trees.items())[:: 1 if number % 2 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    found = trained(tree, recipe, arguments.steps, Path(folder) / "run")
                print(f"{recipe} {name}: {found}", file=sys.stderr)
                results.setdefault(recipe, {}).setdefault(name, []).append(found)
    commit = ["git", "-C", str(trees["before"]), "rev-parse", "--short=7", "HEAD"]
    before = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    for recipe, by in results.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(by["now"], by["before"], strict=True)]
        rows.append(
            [
                f"`{recipe}`",
                *(f"{1e3 * statistics.median(run['seconds'] for run in by[name]):.0f}" for name in trees),
                f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})",
                *(f"{by[name][0]['perplexity']:.3f}" for name in trees),
            ]
        )
    header = ["recipe", f"ms a step, {before}", "now", "now / before, median (range)", f"perplexity, {before}", "now"]
    info = machine()
    title = (
        f"{arguments.steps} steps of each recipe in turn, {arguments.rounds} rounds, one thread; LSTM of 200 units, "
        "no dropout (`python benchmarks/text_training.py`)"
    )
    table = f"{title}\n\n{markdown_table(header, rows)}\n\n{machine_line(info)}"
    write_results("text_training", {"machine": info, "before": before, "runs": results}, table, arguments.results)


if __name__ == "__main__":
    main()
