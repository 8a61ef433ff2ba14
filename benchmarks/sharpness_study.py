"""Are minima flatter after cyclic precision? A study of the paper's mechanism, fixed before its first run.

The paper explains CPT's accuracy by flatter minima. Question: are the minima of CPT 3-8 (cosine) flatter than those of
static 8 bits; if so, also flatter than those of static 5 bits, that is, by more than having fewer bits?

Settings: runs of `learning_study.py`, trained again with its settings and seeds: `PLAN`, `KINDS`, `SEEDS` below. The
networks of one seed have the same initial weights and batches and are measured on the same images in the same
directions, so they are compared in pairs; another seed has other images and directions, so that the intervals include
the choice of these. Training is deterministic: the table says for how many runs the accuracy is that of the other
study, where that has the run from a processor of the same kind. The accuracies themselves are not used.

Measures: the calibrated network at 8 bits, as it would be exported, whatever the bits it was trained at. The loss is
the cross-entropy of 400 of the images that the run was trained on, without augmentation or weight decay.
- Hessian (straight-through, see `cpt_deploy.analysis`): largest eigenvalue (to 1 %) and trace (10 probes), relative to
  the norms of the filters, and in absolute coordinates.
- Ball: largest rise of the loss in 5 steps of gradient ascent at a relative distance of 0.05.
- Slice: rise of the loss at a relative distance of 0.2 (each filter is moved by 0.2 of its norm), mean over both signs
  of 5 random directions. Distances of 0.1 to 0.5 are measured for the picture; only 0.2 is tested.
Radius, distance, images and probes were chosen for their time and because the losses rise by neither nothing nor
everything, on one run of static 8 bits with a seed that the study does not have.

Analysis: paired differences of the logarithm of each measure (`PAIRS`), their mean as a ratio, and the interval of
Student's t at 95 %. A ratio is called different from 1 only if Holm's correction over all comparisons of the study
(each of `MEASURES` for each pair, data set and length) leaves p below 5 %. If a value is not above zero, it has no
logarithm: the table says so, and that comparison is left out. For a data set and length the first answer is yes if the
ratios of CPT to static 8 in all four relative measures are below 1 and at least one is called different; the second is
yes if the ratios of CPT to static 5 are. Otherwise flatter minima are not shown there.

Without a test: the loss at the minimum, because the curvature of the cross-entropy vanishes with it, and the relative
trace divided by this loss, which says whether a smaller trace is more than a smaller loss.

End: every cell has all seeds; then the study ends, whatever the result. The order of the runs does not depend on
results. Until then the table says how many runs there are.

Noted afterwards: the table was first looked at after 60 of the 72 runs; settings, measures, analysis and end stayed as
registered. The values of radius, distance, images and probes were chosen on four short runs of static 8, not on one.

    CPT_DATA_DIR=... OMP_NUM_THREADS=1 nice -n 10 python benchmarks/sharpness_study.py [--minutes 60]

Each measured run is added to `results/sharpness_study.json`; repeating the command goes on with the missing ones, and
`--table` only writes table and picture of those that exist; `--cell fashion/1000/cpt/0` measures one run again and
prints its measures beside those that are recorded.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import learning_study
import numpy as np
import torch
from learning import processor_name
from learning_study import REFERENCE, SETS, TITLES, Difference, Runs, corrected, difference, key, settings
from measuring import RESULTS, ROOT, machine, machine_line, markdown_table, write_results

from cpt_deploy.analysis import Grid, SharpnessSettings, landscape_of, measure_sharpness
from cpt_deploy.analysis.minimum import Batches
from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.data import FittedImages, recipe_images
from cpt_deploy.recipe import load_recipe
from cpt_deploy.report.figures import fit, grids, line_style, new_figure, picture, save
from cpt_deploy.report.labels import legend_below
from cpt_deploy.training import TrainedRun, load_run, train

NAME = "sharpness_study"
PICTURE = ROOT / "docs" / "images" / "sharpness_study.png"

#: Blocks of data sets and lengths, one block after the other, each seed by seed.
PLAN = ((("fashion", 1_000),), (("few-fashion", 3_000), ("fashion", 3_000)))
KINDS = (REFERENCE, "cpt", "static5")
#: Kinds that are compared, each with the kind that it is divided by.
PAIRS = (("cpt", REFERENCE), ("static5", REFERENCE), ("cpt", "static5"))
SEEDS = learning_study.SEEDS

IMAGES, BATCH = 400, 200
RELATIVE = SharpnessSettings(eigenvalues=1, tolerance=0.01, probes=10, radius=0.05, steps=5)
ABSOLUTE = SharpnessSettings(eigenvalues=1, tolerance=0.01, probes=10, radius=0.05, steps=1)
DIRECTIONS, GRID = 5, Grid(points=11, extent=0.5, dimensions=1)
DISTANCES = GRID.ticks[GRID.points // 2 + 1 :]
TESTED_DISTANCE = 1  # the second of the distances, 0.2

Value = Callable[[Mapping[str, Any]], float]
"""A measure of a run."""
Comparison = tuple[str, int, tuple[str, str], str]
"""Data set, steps, pair of kinds and name of the measure."""

#: Measures that are tested, by their name in the table.
MEASURES: dict[str, Value] = {
    "largest eigenvalue, relative": lambda run: float(run["relative"]["eigenvalues"][0]),
    "trace, relative": lambda run: float(run["relative"]["trace"]["mean"]),
    "rise in the ball, relative": lambda run: float(run["relative"]["rise"]),
    "rise on the slice, relative": lambda run: float(run["slice"][TESTED_DISTANCE]),
    "largest eigenvalue, absolute": lambda run: float(run["absolute"]["eigenvalues"][0]),
    "trace, absolute": lambda run: float(run["absolute"]["trace"]["mean"]),
}
#: Measures that help to read the others, without a test.
DESCRIPTIONS: dict[str, Value] = {
    "loss at the minimum": lambda run: float(run["relative"]["loss"]),
    "trace, relative, by loss": lambda run: float(run["relative"]["trace"]["mean"] / run["relative"]["loss"]),
}


def cells() -> Iterator[tuple[str, int, str, int]]:
    """Yield every run of the study: data set, steps, kind and seed."""
    for block in PLAN:
        for seed in SEEDS:
            for name, steps in block:
                for kind in KINDS:
                    yield name, steps, kind, seed


# --- measuring ------------------------------------------------------------------------------------------------------


def training_images(run: TrainedRun, count: int, seed: int) -> Batches:
    """Return images that the run was trained on: those of `load_minimum`, in the memory format of the recorded runs.

    Its channels-last format changes the last digits of most measures, and the rise in the ball by a percent.
    """
    source = recipe_images(run.recipe.data, "train")
    preprocessing = run.expect_processor(ImageProcessor).preprocessing
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
    inputs = torch.from_numpy(preprocessing.normalize(FittedImages(source, preprocessing).pick(chosen)))
    labels = torch.from_numpy(source.labels[chosen])
    return tuple(zip(*(torch.split(tensor, BATCH) for tensor in (inputs, labels)), strict=True))


def slice_rises(model: torch.nn.Module, batches: Batches, seed: int) -> list[float]:
    """Return the rise of the loss at each of `DISTANCES`, mean over both signs of random directions of a seed."""
    lines = []
    for number in range(DIRECTIONS):
        line = landscape_of(model, batches, GRID, seed=DIRECTIONS * seed + number)
        lines.append(np.array(line.losses[0]) - line.centre.loss)
    rises = np.mean(lines, axis=0)
    middle = GRID.points // 2
    return [float(rises[middle + step] + rises[middle - step]) / 2 for step in range(1, middle + 1)]


def measured(name: str, steps: int, kind: str, seed: int) -> dict[str, Any]:
    """Train a run of the study of accuracy in a temporary folder, and return the measures of its minimum."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        report = train(load_recipe("digits-quickstart", settings(name, steps, kind, seed)), path)
        run = load_run(path)
        trained = time.process_time()
        model, batches = run.model.to(memory_format=torch.contiguous_format), training_images(run, IMAGES, seed)
        relative = measure_sharpness(model, batches, "relative", RELATIVE).to_dict()
        absolute = measure_sharpness(model, batches, "absolute", ABSOLUTE).to_dict()
        rises = slice_rises(model, batches, seed)
    return {
        "accuracy": report.test.metrics["accuracy"],  # to be compared with that of the other study
        "relative": relative,
        "absolute": absolute,
        "slice": rises,
        "cpu_seconds": {
            "training": round(trained - begin, 1),
            "measuring": round(time.process_time() - trained, 1),
        },
    }


def read_results() -> dict[str, Any]:
    """Return the results file, or its content before the first run."""
    path = RESULTS / f"{NAME}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    return content


def add_run(cell: str, run: dict[str, Any], info: dict[str, Any]) -> None:
    """Add a measured run to the results; a reader sees either the old or the new file."""
    content = read_results()
    content["machine"] = info  # of the last run; each run names its processor
    content["runs"][cell] = run
    unfinished = RESULTS / f"{NAME}.json.new"
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(RESULTS / f"{NAME}.json")


def planned_cell(text: str) -> tuple[str, int, str, int]:
    """Return the run that a text such as `fashion/1000/cpt/0` names.

    Raises:
        argparse.ArgumentTypeError: If the study has no such run.
    """
    for cell in cells():
        if key(*cell) == text:
            return cell
    raise argparse.ArgumentTypeError(f"expected a run of the study such as fashion/1000/cpt/0, got {text!r}")


def again(cell: tuple[str, int, str, int]) -> str:
    """Measure a run again, and return its measures beside those that are recorded."""
    now, recorded = measured(*cell), read_results()["runs"].get(key(*cell))
    rows = [
        [measure, f"{value(now):.6g}", f"{value(recorded):.6g}" if recorded else "none"]
        for measure, value in {**MEASURES, **DESCRIPTIONS}.items()
    ]
    return markdown_table([key(*cell), "now", "recorded"], rows)


# --- analysis -------------------------------------------------------------------------------------------------------


def log_ratio(runs: Runs, name: str, steps: int, pair: tuple[str, str], value: Value) -> Difference | str | None:
    """Compare the logarithm of a measure between two kinds.

    Returns:
        The paired differences; "not above 0" if a value has no logarithm; None with fewer than two pairs.
    """
    logs: Runs = {}
    for kind, stand_in in zip(pair, ("cpt", REFERENCE), strict=True):  # `difference` compares with `REFERENCE`
        for seed in SEEDS:
            if run := runs.get(key(name, steps, kind, seed)):
                if value(run) <= 0:
                    return "not above 0"
                # `difference` compares accuracies in percent.
                logs[key(name, steps, stand_in, seed)] = {"accuracy": math.log(value(run)) / 100}
    return difference(logs, name, steps, "cpt")


def comparisons(runs: Runs, measures: Mapping[str, Value]) -> dict[Comparison, Difference | str]:
    """Return the comparison of each data set, length, pair and measure that has two seeds or more."""
    found = {
        (name, steps, pair, measure): log_ratio(runs, name, steps, pair, value)
        for block in PLAN
        for name, steps in block
        for pair in PAIRS
        for measure, value in measures.items()
    }
    return {cell: entry for cell, entry in found.items() if entry is not None}


def agreement(runs: Runs, others: Runs) -> tuple[int, int]:
    """Return how many runs have the accuracy of the other study, and how many can be compared with it."""
    same = [
        run["accuracy"] == other["accuracy"]
        for cell, run in runs.items()
        if (other := others.get(cell)) and other["processor"] == run["processor"]
    ]
    return sum(same), len(same)


def table(runs: Runs, others: Runs, info: Mapping[str, Any]) -> str:
    """Return a table for each data set and length: a row for each measure, a column for each kind."""
    tested = comparisons(runs, MEASURES)
    p = corrected({cell: entry for cell, entry in tested.items() if isinstance(entry, Difference)})
    found = {**tested, **comparisons(runs, DESCRIPTIONS)}
    measures = {**MEASURES, **DESCRIPTIONS}
    same, comparable = agreement(runs, others)
    parts = [
        f"{len(runs)} of {sum(1 for _ in cells())} runs. Geometric means over seeds at static 8, and ratios paired by "
        "seed: mean, 95 % interval of Student's t, number of seeds; `*` where Holm's correction over all comparisons "
        "of the study leaves p below 0.05. The last two rows of each table are not tested. Loss of "
        f"{IMAGES} images of the training data; ball of {RELATIVE.radius:g}, slice at "
        f"{DISTANCES[TESTED_DISTANCE]:g} along {DIRECTIONS} random directions (`python benchmarks/{NAME}.py`). "
        f"Trained again, {same} of {comparable} runs have exactly the accuracy that `learning_study.py` found on a "
        "processor of the same kind."
    ]
    header = ["", TITLES[REFERENCE], *(f"{TITLES[kind]} ÷ {TITLES[other]}" for kind, other in PAIRS)]
    for name, steps in sorted({cell[:2] for cell in found}):
        rows = []
        for measure, value in measures.items():
            at = [run for seed in SEEDS if (run := runs.get(key(name, steps, REFERENCE, seed)))]
            compared = [(name, steps, pair, measure) for pair in PAIRS]
            entries = [_entry(found.get(cell), p.get(cell)) for cell in compared]
            rows.append([measure, _mean([value(run) for run in at]), *entries])
        parts.append(f"**{SETS[name].title}, {steps:,} steps**\n\n{markdown_table(header, rows)}")
    return "\n\n".join([*parts, machine_line(info)])


def _mean(values: Sequence[float]) -> str:
    if not values or min(values) <= 0:
        return ""
    mean = statistics.geometric_mean(values)
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"


def _entry(found: Difference | str | None, p: float | None) -> str:
    if not isinstance(found, Difference):
        return found or ""
    low, high = (math.exp(found.mean + sign * found.half) for sign in (-1, 1))
    star = "*" if p is not None and p < 0.05 else ""
    return f"{math.exp(found.mean):.2f} [{low:.2f}, {high:.2f}] ({found.seeds}){star}"


# --- picture --------------------------------------------------------------------------------------------------------


def band(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Return the geometric mean over the rows of each column and its 95 % interval of Student's t."""
    from scipy.stats import t as student

    logs = np.log(np.array(values))
    mean, error = logs.mean(axis=0), logs.std(axis=0, ddof=1) / math.sqrt(len(logs))
    half = float(student.ppf(0.975, len(logs) - 1)) * error
    middle, low, high = (np.exp(part).tolist() for part in (mean, mean - half, mean + half))
    return middle, low, high


@picture
def draw(runs: Runs, destination: Path) -> Any:
    """Draw the rise of the loss against the relative distance: a panel for each data set and length."""
    panels = sorted(where for block in PLAN for where in block)
    figure = new_figure(3.1 * len(panels), 3.3)
    shown = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, steps) in zip(shown, panels, strict=True):
        everything: list[float] = []
        for index, kind in enumerate(KINDS):
            found = [run["slice"] for seed in SEEDS if (run := runs.get(key(name, steps, kind, seed)))]
            if len(found) < 2 or np.min(found) <= 0:
                continue
            mean, low, high = band(found)
            style = line_style(index, len(DISTANCES))
            axes.fill_between(DISTANCES, low, high, color=style["color"], alpha=0.18, linewidth=0)
            axes.plot(DISTANCES, mean, label=TITLES[kind] if axes is shown[0] else None, **style)
            everything += [*mean, *low, *high]
        fit(axes, everything, log=True)
        axes.set_title(f"{SETS[name].title},\n{steps:,} steps")
        axes.set_xlabel("distance, relative to each filter")
    shown[0].set_ylabel("rise of the loss")
    grids(*shown)
    legend_below(figure, *shown)
    return save(figure, destination)


def main() -> None:
    """Measure missing runs until the time is over, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after this time")
    parser.add_argument("--table", action="store_true", help="train nothing; write table and picture of what exists")
    parser.add_argument("--cell", type=planned_cell, help="measure this run again, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cell:
        print(again(arguments.cell))
        return
    info = machine()
    end = time.monotonic() + 60 * arguments.minutes
    for cell in () if arguments.table else cells():
        if key(*cell) in read_results()["runs"]:
            continue
        if time.monotonic() > end:
            break
        add_run(key(*cell), {**measured(*cell), "processor": processor_name(info)}, info)
        print(f"{time.strftime('%H:%M:%S')} {key(*cell)}", file=sys.stderr, flush=True)  # no results: nobody looks
    content = read_results()
    if content["runs"]:
        others = learning_study.read_results()["runs"]
        write_results(NAME, content, table(content["runs"], others, content["machine"]))
        draw(content["runs"], PICTURE)


if __name__ == "__main__":
    main()
