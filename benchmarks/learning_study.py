"""Does cyclic precision pay? A study whose question, settings, analysis and end were fixed before its first run.

Question: at which number of steps, if at any, is the accuracy of CPT 3-8 (cosine) at least that of static 8 bits, and
does the answer differ between plenty of data and few?

Settings: `SETS`, `LENGTHS`, `KINDS`, `SEEDS` below. Runs of one seed have the same initial weights and batches, so they
are compared in pairs. Networks are small enough to converge on a CPU. Those for images have SGD with momentum 0.9 at
0.1, a cosine down to zero over the run, weight decay 1e-4, batches of 64, 8 cycles, gradients of 8 bits, first and last
layer at 8.

Analysis: top-1 accuracy of the calibrated model on the whole test set (for the set of 2,000 images on 2,000 of the test
set, since `data.limit` limits both); for each data set, length and kind the paired
differences to static 8, their mean, standard error and interval of Student's t. Intervals are at 95 % each in the
picture; a difference is called one only if Holm's correction over all comparisons of the study leaves it below 5 %.

End: every cell has exactly the seeds of `SEEDS`; then the study ends, whatever came out. Cells are trained in the order
of `cells()`, which does not depend on results. Until then tables and pictures say how many seeds there are.

Registered later, before its first run, when 200 of the other runs were done and none had been looked at: a cyclic
learning rate at static 8 bits, which restarts in the cycles of the schedules, the paper's own control.

Registered later, before its first run, when the table of 318 other runs had been seen: a language model, two LSTM
layers of 64 that read the bytes of Shakespeare (`TEXT_KINDS`). Bits are the paper's for its LSTM, 5-8 forward and 8
backward, and the whole network cycles, as there; optimizer and clipping are those of the recipe `ptb-lstm` (SGD at 20,
0.25), with the study's cosine over the run and 8 cycles; 40 rows of 12 bytes per step, no dropout; the model of static
5 bits is evaluated at 8, as for images. Compared is the calibrated model's mean loss per byte of the whole test text:
static 8 minus the other, times 100, which is nearly the percent by which perplexity is lower. Positive is better, as
for accuracy. Kinds and lengths follow from the time of a step and the paper. Beforehand, static 8 was trained for up
to 1,000 steps with a seed outside of the study, to see that the training loss falls; others ran for 60 steps for their
time alone. Holm's correction includes these comparisons.

Registered later, before its first run, when 514 other runs had been seen, all of up to 1,000 steps: the quantizers of
the authors' code (`quantization.scheme=sbm`) on both sets of Fashion-MNIST up to 3,000 steps, at static 8 bits and with
CPT 3-8 (`SBM_KINDS`). Static 8 of theirs is compared with static 8 as all others are; CPT of theirs with static 8 of
theirs, which says whether the difference that CPT makes depends on the quantizers.

Registered later, before its first run, when 675 other runs had been seen: static 8 bits after 70 % of the run in
float32 (`precision.delay=0.7`, `DELAYED_KINDS`) on both sets of Fashion-MNIST up to 3,000 steps. Once with the study's
cosine, once with a learning rate that is constant until quantization begins and then decays: the fused cooldown of
Dremov et al. (compute-optimal QAT, arXiv 2509.22935). Both are compared with static 8 as all others are. They pay if
they are not worse, since a step of these networks takes less time in float32. Beforehand, a run of 88 steps on
digits was looked at, to see that the setting works.

Departures from the order of `cells()`, each written down together with the runs that it brought: from 675 runs on, both
sets of Fashion-MNIST went before the others, those of 3,000 steps, then of 10,000, of these static 8, CPT 3-8 and 5-8
first, then REX, the cyclic learning rate and the exponential schedule; from 867 on, those of 30,000 steps; from 891 on,
again those of 10,000, then the authors' quantizers, the language model and digits. Which run comes first changes no
result, since each cell gets all its seeds.

Sharpness has a study of its own, `sharpness_study.py`.

    CPT_DATA_DIR=... OMP_NUM_THREADS=1 nice -n 19 python benchmarks/learning_study.py [--minutes 60] [--share 1/2]

Each finished run is added to `results/learning_study.json`; repeating the command goes on with the missing ones. Two
processes beside each other take a share each (`--share 1/2` and `--share 2/2`); `--sets` trains on some of the data
sets only. `--table` trains nothing and writes table and picture; `--cell fashion/1000/cpt/0` prints the command that
repeats a run, runs it and compares the result with the recorded one.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from learning import processor_name
from measuring import RESULTS, ROOT, machine, write_results
from paired_differences import Difference, corrected, mean_difference
from training_grid import KINDS as PRECISIONS
from training_grid import Metric

from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import RunReport, train

SEEDS = range(8)
CYCLES = 8
REFERENCE = "static8"


@dataclass(frozen=True)
class DataSet:
    """A data set of the study.

    Args:
        title: Name in tables.
        settings: Changes of the preset.
        longest: Number of steps of its longest runs.
        kinds: Precision of each kind of run on it, and the kind's longest run.
        preset: Recipe on which the runs are based.
        metric: Metric on the test set.
        eval_batch: Images, or parallel rows of text, per batch of an evaluation.
    """

    title: str
    settings: tuple[str, ...]
    longest: int
    kinds: Mapping[str, tuple[list[str], int]]
    preset: str = "digits-quickstart"
    metric: Metric = "accuracy"
    eval_batch: int = 500


LENGTHS = (300, 1_000, 3_000, 10_000, 30_000)

#: Precision of each kind, and its longest run: only three kinds are trained at all lengths.
KINDS: dict[str, tuple[list[str], int]] = {
    "float32": (PRECISIONS["float32"], 30_000),
    "static8": (PRECISIONS["static8"], 30_000),
    "cpt": (PRECISIONS["cpt"], 30_000),
    "cpt-5-8": (["precision.schedule=cosine", "precision.min_bits=5"], 10_000),
    "exponential": (PRECISIONS["cpt-small-saving"], 10_000),
    "rex": (PRECISIONS["cpt-large-saving"], 10_000),
    "static6": (PRECISIONS["static6"], 10_000),
    "static5": (PRECISIONS["static5"], 10_000),
    "cyclic-lr": ([*PRECISIONS["static8"], f"lr.cycles={CYCLES}"], 10_000),
}
#: The quantizers of the authors' code.
SBM_KINDS: dict[str, tuple[list[str], int]] = {
    "sbm-static8": ([*PRECISIONS["static8"], "quantization.scheme=sbm"], 3_000),
    "sbm-cpt": ([*PRECISIONS["cpt"], "quantization.scheme=sbm"], 3_000),
}
#: Quantization that begins after 70 % of the run.
DELAYED_KINDS: dict[str, tuple[list[str], int]] = {
    "delayed": ([*PRECISIONS["static8"], "precision.delay=0.7"], 3_000),
    "cooldown": ([*PRECISIONS["static8"], "precision.delay=0.7", "lr.decay_start=0.7"], 3_000),
}
#: Kinds that are compared with another one than `REFERENCE`.
REFERENCES = {"sbm-cpt": "sbm-static8"}
#: The same for text, where a cycle includes the first and the last layer.
TEXT_KINDS: dict[str, tuple[list[str], int]] = {
    "float32": ([*PRECISIONS["float32"], "precision.ends=scheduled"], 3_000),
    "static8": (PRECISIONS["static8"], 3_000),
    "cpt-5-8": (KINDS["cpt-5-8"][0], 3_000),
    "exponential-5-8": (["precision.schedule=exponential", "precision.min_bits=5"], 1_000),
    "static5": (PRECISIONS["static5"], 1_000),
}
_TEXT = (
    *("data.name=tinyshakespeare", "data.text.level=byte", "data.text.sequence=12"),
    *("model.args={embedding: 64, hidden: 64, layers: 2, dropout: 0}", "lr.name=cosine"),
    *("train.batch_size=40", "train.calibration_batches=20"),
)


def _fashion(*settings: str) -> tuple[str, ...]:
    own = ("data.name=fashion-mnist", "model.name=resnet8", "model.args={width: 8}", "data.augment=[]")
    return (*own, "data.input.size=[14, 14]", "data.input.resize=14", *settings)


SETS = {
    "digits": DataSet("digits, 1,442 images of 8x8", (), 3_000, KINDS),
    "fashion": DataSet("Fashion-MNIST, 60,000 images of 14x14", _fashion(), 30_000, KINDS | SBM_KINDS | DELAYED_KINDS),
    "few-fashion": DataSet(
        "Fashion-MNIST, 2,000 images of 14x14", _fashion("data.limit=2000"), 10_000, KINDS | SBM_KINDS | DELAYED_KINDS
    ),
    "shakespeare": DataSet("Shakespeare, 1,003,856 bytes", _TEXT, 3_000, TEXT_KINDS, "ptb-lstm", "perplexity", 100),
}
TITLES = {
    "float32": "float32",
    "static8": "static 8",
    "cpt": "CPT 3-8, cosine",
    "cpt-5-8": "CPT 5-8, cosine",
    "exponential": "CPT 3-8, exponential",
    "exponential-5-8": "CPT 5-8, exponential",
    "rex": "CPT 3-8, REX",
    "static6": "static 6",
    "static5": "static 5",
    "cyclic-lr": "static 8, cyclic learning rate",
    "sbm-static8": "static 8, authors' quantizers",
    "sbm-cpt": "CPT 3-8, authors' quantizers",
    "delayed": "float32, from 70 % on static 8",
    "cooldown": "float32, from 70 % on static 8 and decay",
}

Runs = dict[str, dict[str, Any]]
"""Results by `set/steps/kind/seed`."""


def cells() -> Iterator[tuple[str, int, str, int]]:
    """Yield every run of the study: short ones of all sets first, and within a length seed by seed."""
    for steps in LENGTHS:
        for seed in SEEDS:
            for name, data in SETS.items():
                for kind, (_, longest) in data.kinds.items():
                    if steps <= min(data.longest, longest):
                        yield name, steps, kind, seed


def key(name: str, steps: int, kind: str, seed: int) -> str:
    """Return the name of a run in the results."""
    return f"{name}/{steps}/{kind}/{seed}"


def settings(name: str, steps: int, kind: str, seed: int) -> list[str]:
    """Return the settings of a run, as `cpt train` takes them after the set's preset."""
    data = SETS[name]
    return [
        *data.settings,
        *data.kinds[kind][0],
        f"precision.cycles={CYCLES}",
        "train.epochs=null",
        f"train.steps={steps}",
        f"train.eval_batch_size={data.eval_batch}",
        "train.eval_every=null",
        "train.checkpoint_every=null",
        f"train.log_every={max(10, steps // 30)}",
        "train.device=cpu",
        f"seed={seed}",
        f"name={name}-{steps}-{kind}",
    ]


def trained(name: str, steps: int, kind: str, seed: int) -> dict[str, Any]:
    """Train a run in a temporary folder and return its results."""
    recipe = load_recipe(SETS[name].preset, settings(name, steps, kind, seed))
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        report = train(recipe, Path(folder) / "run")
    return {
        SETS[name].metric: report.test.metrics[SETS[name].metric],
        "loss": report.test.loss,
        "gbitops": report.cost["gbitops"],
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


@contextmanager
def results_lock() -> Iterator[None]:
    """Keep other processes from reading and writing the results meanwhile."""
    with (RESULTS / "learning_study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_results() -> dict[str, Any]:
    """Return what `results/learning_study.json` holds, or no runs."""
    path = RESULTS / "learning_study.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"processors": {}, "runs": {}}
    return content


def add_run(cell: str, run: dict[str, Any], info: dict[str, Any]) -> None:
    """Add a finished run to the results, which another process may be adding to as well."""
    with results_lock():
        content = read_results()
        content["machine"] = info  # of the last runs; each run names its processor
        content["processors"][run["processor"]] = info
        content["runs"][cell] = run
        unfinished = RESULTS / "learning_study.json.new"
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(RESULTS / "learning_study.json")


def share(text: str) -> tuple[int, int]:
    """Return which part of how many a text such as `1/2` names, counted from zero.

    Raises:
        argparse.ArgumentTypeError: If it names none.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected a part of a whole such as 1/2, got {text!r}")
    return int(part) - 1, int(parts)


def gain(name: str, run: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Return by how much a run is better than another: accuracy gained, or loss per token saved."""
    if SETS[name].metric == "perplexity":
        return float(reference["loss"] - run["loss"])
    return float(run["accuracy"] - reference["accuracy"])


def difference(runs: Runs, name: str, steps: int, kind: str) -> Difference | None:
    """Return the difference of a cell to static 8 bits, see `REFERENCES`; None with fewer than two pairs.

    It is in points of accuracy, or in hundredths of a nat per token, each of which is about a percent of perplexity.
    """
    other = REFERENCES.get(kind, REFERENCE)
    pairs = [(runs.get(key(name, steps, kind, seed)), runs.get(key(name, steps, other, seed))) for seed in SEEDS]
    found = [100 * gain(name, mine, partner) for mine, partner in pairs if mine and partner]
    return mean_difference(found) if len(found) >= 2 else None


def compared(runs: Runs) -> dict[tuple[str, int, str], tuple[Difference, float]]:
    """Return the differences there are, each with its p value corrected for all comparisons of the study."""
    planned = [(name, steps, kind) for name, steps, kind, seed in cells() if seed == SEEDS[0] and kind != REFERENCE]
    found = {cell: value for cell in planned if (value := difference(runs, *cell)) is not None}
    p = corrected(found, len(planned))
    return {cell: (value, p[cell]) for cell, value in found.items()}


def planned_cell(text: str) -> tuple[str, int, str, int]:
    """Return the run that a text such as `fashion/1000/cpt/0` names.

    Raises:
        argparse.ArgumentTypeError: If the study has no such run.
    """
    found = next((cell for cell in cells() if key(*cell) == text), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected set/steps/kind/seed such as fashion/1000/cpt/0, got {text!r}")
    return found


def command(name: str, steps: int, kind: str, seed: int) -> list[str]:
    """Return the command that repeats a run."""
    return ["cpt", "train", SETS[name].preset, *settings(name, steps, kind, seed)]


def repeat(cell: tuple[str, int, str, int]) -> None:
    """Print the command of a run, run it, and print its result beside the recorded one."""
    line = command(*cell)
    print(f"OMP_NUM_THREADS=1 {shlex.join(line)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    metric = SETS[cell[0]].metric
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "cpt_cli", *line[1:], "--out", str(run)], check=True, env=environment)
        value = RunReport.read(run / "report.json").test.metrics[metric]
    recorded = read_results()["runs"].get(key(*cell))
    print(
        f"{metric} {value:.6g}, recorded " + (f"{recorded[metric]:.6g} on {recorded['processor']}" if recorded else "-")
    )


def write_report() -> None:
    """Write the table and the picture of what there is."""
    from learning_study_report import draw, table

    with results_lock():
        content = read_results()
        write_results("learning_study", content, table(content["runs"]))
    draw(content["runs"], ROOT / "docs/images/learning_study.svg")


def main() -> None:
    """Train missing runs until the time is over, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after this time")
    parser.add_argument("--share", type=share, default=(0, 1), help="train this part of the cells only, such as 1/2")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="train the runs on these only")
    parser.add_argument("--table", action="store_true", help="train nothing; write table and picture of what there is")
    parser.add_argument("--cell", type=planned_cell, help="repeat this run, such as fashion/1000/cpt/0; record nothing")
    arguments = parser.parse_args()
    if arguments.cell:
        repeat(arguments.cell)
        return
    torch.set_num_threads(1)
    info = machine()
    end = time.monotonic() + 60 * arguments.minutes
    first, parts = arguments.share
    wanted = () if arguments.table else (cell for cell in cells() if cell[0] in arguments.sets)
    for cell in itertools.islice(wanted, first, None, parts):
        with results_lock():
            known = key(*cell) in read_results()["runs"]
        if known:
            continue
        if time.monotonic() > end:
            break
        add_run(key(*cell), {**trained(*cell), "processor": processor_name(info)}, info)
        print(f"{time.strftime('%H:%M:%S')} {key(*cell)}", file=sys.stderr, flush=True)  # no accuracy: nobody looks
    if arguments.table or parts == 1:
        write_report()


if __name__ == "__main__":
    main()
