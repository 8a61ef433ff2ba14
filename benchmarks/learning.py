"""Training at static bits, with cyclic precision and in float32: accuracy or perplexity, BitOPs and time.

The settings are in `training_grid.py`, were fixed before any run, and all runs are reported. One thread; runs are kept
in a folder, seed by seed: repeating the command resumes, and `--table` shows the finished ones. Published results are
kept, since seeds can come from several machines; if their settings are others, nothing is trained.

    CPT_DATA_DIR=… OMP_NUM_THREADS=1 python benchmarks/learning.py [--seeds 5] [--datasets ptb] [--table]
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, machine, markdown_table, write_results
from training_grid import MAX_BITS, TASKS, Task, cpu_seconds, run_settings, trained_run

from cpt_deploy.training import RunReport

ROWS = {
    "float32": "float32",
    "static8": "static 8",
    "static6": "static 6",
    "static4": "static 4",
    "cpt": "CPT, cosine (medium saving)",
    "cpt-exact": "CPT, cosine, products in float32",
    "cpt-large-saving": "CPT, REX (large saving)",
    "cpt-small-saving": "CPT, exponential (small saving)",
}
REFERENCE = f"static{MAX_BITS}"
COLUMNS = {"accuracy": "accuracy, %", "perplexity": "perplexity"}
PERCENT = 100
SETTINGS = {name: {kind: run_settings(name, kind, 0) for kind in task.kinds} for name, task in TASKS.items()}

#: For each run, by data set, kind and seed: its metric, GBitOPs, seconds of processor time, and the processor's units.
Runs = dict[str, dict[str, dict[str, dict[str, Any]]]]


def finished(folder: Path, processor: str) -> Runs:
    """Return the results of each finished run of a folder."""
    found: Runs = {}
    for path in sorted(folder.glob("*-seed*/report.json")):
        name, _, seed = path.parent.name.rpartition("-seed")
        dataset = next(d for d in TASKS if name.startswith(f"{d}-"))
        kind = name.removeprefix(f"{dataset}-")
        if kind in ROWS:
            report = RunReport.read(path)
            metric = TASKS[dataset].metric
            found.setdefault(dataset, {}).setdefault(kind, {})[seed] = {
                metric: report.test.metrics[metric],
                "gbitops": report.cost["gbitops"],
                "cpu_seconds": cpu_seconds(path.parent),
                "processor": processor,
            }
    return found


def published(settings: Mapping[str, Any]) -> Runs:
    """Return the published runs.

    Raises:
        SystemExit: If they have other settings: new runs could not be compared with them.
    """
    path = RESULTS / "learning.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    changed = [
        name
        for name, kinds in content["settings"].items()
        if any(settings.get(name, {}).get(kind) != words for kind, words in kinds.items())
    ]
    if changed:
        raise SystemExit(
            f"Expected the settings of training_grid.py in {path}, but those of {', '.join(changed)} differ: restore "
            "them, or move the file away to publish new runs alone"
        )
    runs: Runs = content["runs"]
    return runs


def merged(*parts: Runs) -> Runs:
    """Merge the runs of all parts in the order of their seeds; the last of duplicates is kept."""
    result: Runs = {}
    for dataset in TASKS:
        for kind in ROWS:
            runs: dict[str, dict[str, Any]] = {}
            for part in parts:
                runs |= part.get(dataset, {}).get(kind, {})
            if runs:
                result.setdefault(dataset, {})[kind] = dict(sorted(runs.items(), key=lambda item: int(item[0])))
    return result


def spread(values: Iterable[float], digits: int = 2, *, signed: bool = False) -> str:
    """Return mean ± sample standard deviation."""
    numbers = list(values)
    mean = f"{statistics.mean(numbers):{'+' if signed else ''}.{digits}f}"
    return mean if len(numbers) < 2 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def row(kind: str, runs: Mapping[str, Mapping[str, Any]], metric: str, processors: list[str]) -> list[str]:
    """Return a line of the table; differences are paired by seed."""
    mine, reference = runs[kind], runs.get(REFERENCE, {})
    unit = PERCENT if metric == "accuracy" else 1
    shared = [seed for seed in mine if seed in reference]
    differences = [unit * (mine[seed][metric] - reference[seed][metric]) for seed in shared]
    cost = [mine[seed]["gbitops"] / reference[seed]["gbitops"] for seed in shared]
    return [
        ROWS[kind],
        str(len(mine)),
        spread(unit * run[metric] for run in mine.values()),
        "" if kind == REFERENCE or not differences else spread(differences, signed=True),
        f"{statistics.mean(cost):.2f}" if cost else "",
        *(_processor_time(mine, processor) for processor in processors),
    ]


def _processor_time(runs: Mapping[str, Mapping[str, Any]], processor: str) -> str:
    seconds = [run["cpu_seconds"] for run in runs.values() if run["processor"] == processor and run["cpu_seconds"]]
    return f"{statistics.median(seconds):.0f} s" if seconds else ""


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text: a table per data set."""
    introduction = (
        "Of the calibrated model on the whole test set, mean ± standard deviation over seeds; BitOPs relative to "
        f"static {MAX_BITS}; processor time of a whole run with evaluation, one thread, median, by the widest units of "
        "the processor (`OMP_NUM_THREADS=1 python benchmarks/learning.py`)."
    )
    parts = [f"**{name}**: {_table_of(TASKS[name], kinds)}" for name, kinds in content["runs"].items()]
    versions = ", ".join(f"{name} {content['machine']['versions'][name]}" for name in ("torch", "numpy"))
    return "\n\n".join([introduction, *parts, f"Versions: {versions}."])


def _table_of(task: Task, runs: Mapping[str, Any]) -> str:
    """Return the table of a data set, one row per kind."""
    processors = sorted({run["processor"] for seeds in runs.values() for run in seeds.values()})
    header = ["precision", "seeds", COLUMNS[task.metric], f"minus static {MAX_BITS}, paired", "BitOPs"]
    header += [f"processor time, {processor}" for processor in processors]
    rows = [row(kind, runs, task.metric, processors) for kind in ROWS if kind in runs]
    return f"{task.title}\n\n{markdown_table(header, rows)}"


def processor_name(info: Mapping[str, Any]) -> str:
    """Return the widest vector units of a processor, by which results are told apart."""
    return str(info["flags"][-1] if info["flags"] else info["cpu"])


def main() -> None:
    """Train the missing runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--first-seed", type=int, default=0, help="leave those before it to other machines")
    parser.add_argument("--datasets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--kinds", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, help="shorter runs, for a trial")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-learning"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = published(SETTINGS) if arguments.steps is None else {}
    if not arguments.table:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.first_seed, arguments.seeds):
            for dataset in arguments.datasets:
                for kind in arguments.kinds:
                    if kind in TASKS[dataset].kinds:
                        trained_run(arguments.folder, dataset, kind, seed, arguments.steps)
    info = machine()
    runs = merged(known, finished(arguments.folder, processor_name(info)))
    content = {"machine": info, "settings": {name: SETTINGS[name] for name in runs}, "runs": runs}
    write_results("learning", content, table(content), whole=arguments.steps is None)


if __name__ == "__main__":
    main()
