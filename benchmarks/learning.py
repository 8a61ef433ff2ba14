"""What networks learn at a static precision, with cyclic precision and in float32: accuracy, BitOPs and time.

The settings are in `training_grid.py`, fixed before anything was run, and all that was run is shown. One thread; runs
are kept in a folder, seed by seed: the same command goes on there, and `--table` shows what has finished.

    CPT_DATA_DIR=… OMP_NUM_THREADS=1 python benchmarks/learning.py [--seeds 5] [--table]
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from measuring import machine, machine_line, markdown_table, write_results
from training_grid import CYCLES, DATASETS, EPOCHS, MODEL, UPPER, cpu_seconds, trained_run

from cpt_deploy.training import load_run

ROWS = {
    "float32": "float32",
    "static8": "static 8",
    "static6": "static 6",
    "static4": "static 4",
    "cpt": "CPT 3-8, cosine",
    "cpt-exact": "CPT 3-8, cosine, products in float32",
    "cpt-large-saving": "CPT 3-8, REX (large saving)",
    "cpt-small-saving": "CPT 3-8, exponential (small saving)",
}
REFERENCE = f"static{UPPER}"


def finished(folder: Path) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Return what is known of each finished run, by data set, kind and seed."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*-seed*/report.json")):
        name, _, seed = path.parent.name.rpartition("-seed")
        dataset = next(d for d in DATASETS if name.startswith(f"{d}-"))
        kind = name.removeprefix(f"{dataset}-")
        if kind in ROWS:
            report = load_run(path.parent).report
            found.setdefault(dataset, {}).setdefault(kind, {})[int(seed)] = {
                "accuracy": report.test.top1,
                "gbitops": report.cost["gbitops"],
                "cpu_seconds": cpu_seconds(path.parent),
            }
    return found


def spread(values: Iterable[float], digits: int = 2, *, signed: bool = False) -> str:
    """Return mean ± sample standard deviation."""
    numbers = list(values)
    mean = f"{statistics.mean(numbers):{'+' if signed else ''}.{digits}f}"
    return mean if len(numbers) < 2 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def row(kind: str, runs: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Return a line of the table; differences are paired by seed."""
    mine, reference = runs[kind], runs.get(REFERENCE, {})
    seconds = [run["cpu_seconds"] for run in mine.values() if run["cpu_seconds"] is not None]
    shared = [seed for seed in mine if seed in reference]
    differences = [100 * (mine[seed]["accuracy"] - reference[seed]["accuracy"]) for seed in shared]
    cost = [mine[seed]["gbitops"] / reference[seed]["gbitops"] for seed in shared]
    return [
        ROWS[kind],
        str(len(mine)),
        spread(100 * run["accuracy"] for run in mine.values()),
        "" if kind == REFERENCE or not differences else spread(differences, signed=True),
        f"{statistics.mean(cost):.2f}" if cost else "",
        f"{statistics.median(seconds):.0f} s" if seconds else "",
    ]


def tables(results: dict[str, dict[str, dict[int, dict[str, Any]]]], command: str) -> str:
    """Return a table for each data set."""
    header = ["precision", "seeds", "accuracy, %", f"minus static {UPPER}, paired", "BitOPs", "processor time"]
    parts = [
        f"{MODEL}, {EPOCHS} epochs, {CYCLES} cycles: accuracy of the settled model at its upper bound on all test "
        f"images, mean ± standard deviation over seeds; BitOPs relative to static {UPPER}; processor time of a whole "
        f"run with evaluation, one thread, median (`{command}`)."
    ]
    for dataset, runs in results.items():
        parts += [f"**{dataset}**", markdown_table(header, [row(kind, runs) for kind in ROWS if kind in runs])]
    return "\n\n".join(parts)


def main() -> None:
    """Train what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--kinds", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, help="shorter runs, for a trial")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-learning"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seeds):
            for dataset in arguments.datasets:
                for kind in arguments.kinds:
                    trained_run(arguments.folder, dataset, kind, seed, arguments.steps)
    info, results = machine(), finished(arguments.folder)
    command = f"OMP_NUM_THREADS=1 python benchmarks/learning.py --seeds {arguments.seeds}"
    write_results(
        "learning",
        {"command": command, "machine": info, "model": MODEL, "epochs": EPOCHS, "cycles": CYCLES, "runs": results},
        f"{tables(results, command)}\n\n{machine_line(info)}",
    )


if __name__ == "__main__":
    main()
