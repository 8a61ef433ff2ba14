"""Accuracy of ResNet-38 and ResNet-74 on CIFAR-10-size images, trained statically at 8 bits and with CPT 3-8, on a GPU.

The paper's recipe, `cifar10-paper`: 64,000 iterations of 128 images, 32 cycles. Runs are kept in a folder. Each call
resumes the unfinished runs, several at once because one small network leaves most of a GPU idle, and stops them after
`--seconds` with their state saved: repeating the command resumes them, also on another machine with the same folder.
The table shows all runs, with the last evaluation of unfinished ones.

    CPT_DATA_DIR=… python benchmarks/learning_gpu.py [--seconds 560] [--iterations 64000] [--seeds 1]
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import RESULTS, machine, machine_line, markdown_table, write_results
from training_grid import KINDS, MAX_BITS
from training_steps import gpu

from cpt_deploy.errors import RunInterruptedError
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.training import train

REFERENCE = f"static{MAX_BITS}"
ROWS = {REFERENCE: f"static {MAX_BITS}", "cpt": f"CPT 3-{MAX_BITS}"}
#: Seconds that a stopped run may take to save its state.
GRACE = 60.0
POLL = 0.2


class Planned(NamedTuple):
    """A run of the grid.

    Args:
        model: Name of the network.
        kind: One of `ROWS`.
        seed: Seed of the run.
        iterations: Length of the complete run.
    """

    model: str
    kind: str
    seed: int
    iterations: int

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return f"{self.model}-{self.kind}-{self.iterations}-seed{self.seed}"

    def recipe(self, *, smoke: bool, device: str, workers: int) -> Recipe:
        """Return the settings: the paper's, on the available images."""
        model = [f"model.name={self.model}", f"seed={self.seed}", f"train.steps={self.iterations}", f"name={self.name}"]
        # cuDNN's choice of the fastest convolution may differ from run to run, and with it the order of additions.
        pace = ["train.eval_every=1950 steps", "train.checkpoint_every=1950 steps", "train.deterministic=false"]
        recorded = "true" if device.startswith("cuda") else "false"
        place = [f"train.device={device}", f"data.workers={workers}", f"train.cuda_graph={recorded}"]
        if smoke:
            data = ["data={name: digits, augment: []}", "precision.cycles=2"]
            pace = ["train.eval_every=4 steps", "train.checkpoint_every=4 steps", "train.calibration_batches=2"]
        else:
            data = ["data.name=cifar10-jpeg"]
        return load_recipe("cifar10-paper", [*model, *pace, *data, *place, *KINDS[self.kind]])


def grid(models: list[str], seeds: int, iterations: int) -> Iterator[Planned]:
    """Yield the runs in the order of starting: seed by seed, both kinds of a network next to each other."""
    for seed, model, kind in itertools.product(range(seeds), models, ROWS):
        yield Planned(model, kind, seed, iterations)


def train_one(recipe: Recipe, directory: Path, keep: bool) -> None:
    """Train a run from its last state until its end or SIGTERM; the body of a process."""
    torch.set_num_threads(1)
    try:
        train(recipe, directory, resume=(directory / "recipe.yaml").is_file())
    except RunInterruptedError:
        return
    if keep:
        return
    # Only the files that show the result are kept, so that the folder is small enough to copy.
    for large in ("checkpoints", "tensorboard"):
        shutil.rmtree(directory / large)
    (directory / "model.safetensors").unlink()


def advance(runs: list[tuple[Recipe, Path]], seconds: float, processes: int, *, keep: bool) -> None:
    """Resume the unfinished runs, `processes` at once, and stop all after a time.

    Raises:
        RuntimeError: If a run failed; its process has printed the reason.
    """
    until, context = time.monotonic() + seconds, multiprocessing.get_context("spawn")
    waiting = [(recipe, folder) for recipe, folder in runs if not (folder / "report.json").is_file()]
    going: list[BaseProcess] = []
    try:
        while (waiting or going) and time.monotonic() < until:
            while waiting and len(going) < processes:
                recipe, folder = waiting.pop(0)
                process = context.Process(target=train_one, args=(recipe, folder, keep), name=folder.name)
                process.start()
                going.append(process)
            time.sleep(POLL)
            going = [process for process in going if _is_going(process)]
    finally:  # also where one failed: Python's exit would wait for the end of all others
        for process in going:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
    for process in going:
        process.join(GRACE)
        if process.is_alive():
            process.kill()
            raise RuntimeError(f"{process.name} did not save its state within {GRACE:.0f} s")
        _is_going(process)


def _is_going(process: BaseProcess) -> bool:
    # A process stopped before its handler is installed ends by the signal, without losing anything.
    if process.exitcode not in (None, 0, -signal.SIGTERM):
        raise RuntimeError(f"{process.name} failed, see above")
    return process.exitcode is None


def found(planned: Planned, directory: Path) -> dict[str, Any] | None:
    """Return the results of a run so far; `None` if there are none."""
    metrics = directory / "metrics.csv"
    if not metrics.is_file():
        return None
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    curve = [[int(row["step"]), float(row["test_accuracy"])] for row in rows if row["test_accuracy"]]
    result: dict[str, Any] = {**planned._asdict(), "steps": max((int(row["step"]) for row in rows), default=0)}
    report = directory / "report.json"
    if report.is_file():
        content = json.loads(report.read_text())
        result |= {"accuracy": content["test"]["metrics"]["accuracy"], "gbitops": content["cost"]["gbitops"]}
        result["training_seconds"] = content["seconds"]["training"]
    return {**result, "curve": curve}


def table(results: list[dict[str, Any]]) -> str:
    """Return a row per network and kind: accuracy of finished runs, and progress of the others."""
    header = [
        "network",
        "precision",
        "finished",
        "accuracy, %",
        f"minus static {MAX_BITS}, paired",
        "BitOPs",
        "going on",
    ]
    rows = []
    for model, kind in dict.fromkeys((run["model"], run["kind"]) for run in results):
        mine = [run for run in results if (run["model"], run["kind"]) == (model, kind)]
        done = {run["seed"]: run for run in mine if "accuracy" in run}
        reference = {
            run["seed"]: run
            for run in results
            if (run["model"], run["kind"]) == (model, REFERENCE) and "accuracy" in run
        }
        shared = [seed for seed in done if seed in reference]
        differences = [100 * (done[seed]["accuracy"] - reference[seed]["accuracy"]) for seed in shared]
        cost = [done[seed]["gbitops"] / reference[seed]["gbitops"] for seed in shared]
        rows.append(
            [
                model,
                ROWS[kind],
                str(len(done)),
                _spread([100 * run["accuracy"] for run in done.values()]),
                "" if kind == REFERENCE else _spread(differences, sign="+"),
                f"{statistics.mean(cost):.2f}" if cost else "",
                "; ".join(_standing(run) for run in mine if "accuracy" not in run),
            ]
        )
    return markdown_table(header, rows)


def _standing(run: dict[str, Any]) -> str:
    last = f", {100 * run['curve'][-1][1]:.2f} % at step {run['curve'][-1][0]:,}" if run["curve"] else ""
    return f"seed {run['seed']}: {run['steps']:,} of {run['iterations']:,}{last}"


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def main(words: list[str] | None = None) -> None:
    """Resume the runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=560.0, help="when to stop the runs")
    parser.add_argument("--iterations", type=int, default=64000, help="length of a run; the paper's is 64000")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=["resnet38", "resnet74"])
    parser.add_argument("--processes", type=int, default=4, help="runs at once")
    parser.add_argument("--workers", type=int, default=2, help="loading processes of each")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-learning-gpu"))
    parser.add_argument(
        "--keep", action="store_true", help="keep models and checkpoints of finished runs, for cpt export"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="digits instead of CIFAR-10, to try the program")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    options = {"smoke": arguments.smoke, "device": arguments.device, "workers": arguments.workers}
    planned = list(grid(arguments.models, arguments.seeds, arguments.iterations))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    runs = [(run.recipe(**options), arguments.folder / run.name) for run in planned]
    advance(runs, arguments.seconds, arguments.processes, keep=arguments.keep)
    shown = [found(run, folder) for run, (_, folder) in zip(planned, runs, strict=True)]
    results = [run for run in shown if run is not None]
    info = machine() | ({"gpu": gpu()} if arguments.device.startswith("cuda") else {})
    title = (
        f"CIFAR-10-size images, {arguments.iterations:,} iterations of 128: accuracy of the calibrated model at "
        f"{MAX_BITS} bits on the test images that are here, mean ± standard deviation over seeds; of runs that "
        f"are not finished, "
        "the last evaluation (`python benchmarks/learning_gpu.py`)"
    )
    write_results(
        "learning_gpu",
        {"machine": info, "iterations": arguments.iterations, "runs": results},
        f"{title}\n\n{table(results)}\n\n{machine_line(info)}",
        arguments.results,
    )


if __name__ == "__main__":
    main()
