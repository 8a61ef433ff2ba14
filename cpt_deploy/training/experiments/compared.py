"""Comparison of finished runs: runs that differ only in their seed form a group."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.errors import CheckpointError, UsageError
from cpt_deploy.metric import Metric
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.training.reports import RunReport
from cpt_deploy.training.run_directory.run_directory import RunDirectory

#: Settings that change neither the result nor its cost.
_IMMATERIAL = (
    "seed",
    "name",
    "model.weights",  # identified by their digest
    "data.root",
    "data.workers",
    "data.cache_mb",
    "train.device",
    "train.log_every",
    "train.checkpoint_every",
)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Args:
        path: Its directory.
        recipe: Its settings.
        report: Its report.
    """

    path: Path
    recipe: Recipe
    report: RunReport

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.seed

    @property
    def metric(self) -> Metric:
        """The metric by which the run is compared."""
        return self.report.metric

    @property
    def figure(self) -> float:
        """Value of the metric for the calibrated model on the test split."""
        return self.report.figure


@dataclass(frozen=True)
class RunGroup:
    """Runs of the same settings with different seeds.

    Args:
        name: The directories of the runs, as far as they tell runs apart.
        label: As few settings as tell the groups apart.
        runs: The runs, one per seed, sorted by seed.
        repeated: Further runs of seeds in `runs`; they are ignored.
        unnamed: Names of the settings in which groups differ as well, but which no label names.
    """

    name: str
    label: str
    runs: tuple[FinishedRun, ...]
    repeated: tuple[FinishedRun, ...] = ()
    unnamed: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The metric by which the runs are compared."""
        return self.runs[0].metric

    @property
    def figures(self) -> tuple[float, ...]:
        """Value of the metric for each run."""
        return tuple(run.figure for run in self.runs)

    @property
    def mean(self) -> float:
        """Mean of the figures."""
        return statistics.fmean(self.figures)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the figures over the seeds; `None` with one run."""
        return statistics.stdev(self.figures) if len(self.runs) > 1 else None

    @property
    def gbitops(self) -> float:
        """Mean cost of a run in 10^9 BitOPs."""
        return statistics.fmean(run.report.cost["gbitops"] for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean training time of a run in seconds."""
        return statistics.fmean(run.report.seconds["training"] for run in self.runs)

    def paired_differences(self, other: "RunGroup") -> tuple[float, ...]:
        """Return each figure minus that of the other group's run with the same seed, for the common seeds."""
        theirs = {run.seed: run.figure for run in other.runs}
        return tuple(run.figure - theirs[run.seed] for run in self.runs if run.seed in theirs)


def read_finished_run(run_dir: Path) -> FinishedRun:
    """Read settings and report of a finished run.

    Raises:
        CheckpointError: If there is no run, or it is not finished.
    """
    directory = RunDirectory(run_dir)
    recipe_path = directory.path / "recipe.yaml"
    if not recipe_path.is_file() or not directory.report.is_file():
        what = "an unfinished run" if recipe_path.is_file() else "no run"
        raise CheckpointError(
            f"Expected a finished run in {run_dir}, but got {what}",
            hint=f"cpt train --resume {readable.argument(run_dir)} finishes it" if recipe_path.is_file() else None,
        )
    return FinishedRun(run_dir, load_recipe(recipe_path), RunReport.read(directory.report))


def group_runs(runs: Iterable[FinishedRun]) -> list[RunGroup]:
    """Group runs that differ only in their seed, in the given order.

    The same settings and seed give the same run, so of several only the first counts. A label lists settings that
    differ between groups, by the last part of their names where that is unambiguous; no more of them than tell the
    groups apart.

    Raises:
        UsageError: If runs have different metrics.
    """
    runs = list(runs)
    examples = {run.metric.title: run.path for run in reversed(runs)}
    if len(examples) > 1:
        listed = " and ".join(f"{title} ({path})" for title, path in sorted(examples.items()))
        raise UsageError(
            f"Expected runs that are judged by the same metric, but got {listed}",
            hint="compare the runs of each task by themselves",
        )
    members: dict[tuple[tuple[str, str], ...], list[FinishedRun]] = {}
    for run in runs:
        flat = _flat(run.recipe.model_dump(mode="json"))
        key = tuple(sorted((name, value) for name, value in flat if name not in _IMMATERIAL))
        members.setdefault(key, []).append(run)
    settings = [dict(key) for key in members]
    differing = _differing(settings)
    chosen = _telling_apart(settings, differing)
    unnamed = tuple(name for name in differing if name not in chosen)
    tails = _tails([run.path for run in runs])
    return [
        _group(_label(values, chosen, group[0]), group, tails, unnamed)
        for values, group in zip(settings, members.values(), strict=True)
    ]


def _group(label: str, members: Sequence[FinishedRun], tails: Mapping[Path, str], unnamed: tuple[str, ...]) -> RunGroup:
    by_seed: dict[int, FinishedRun] = {}
    for run in members:
        by_seed.setdefault(run.seed, run)
    repeated = tuple(run for run in members if by_seed[run.seed] is not run)
    counted = tuple(by_seed[seed] for seed in sorted(by_seed))
    first, last = tails[counted[0].path], tails[counted[-1].path]
    name = first if len(counted) == 1 else f"{first}{', ' if len(counted) == 2 else ' … '}{last}"
    return RunGroup(name, label, counted, repeated, unnamed)


def _tails(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of paths that differ from each other."""
    parts = {path: path.resolve().parts for path in paths}
    length = 1
    while length < max(map(len, parts.values())) and len({own[-length:] for own in parts.values()}) < len(parts):
        length += 1
    return {path: "/".join(own[-length:]) for path, own in parts.items()}


def _telling_apart(settings: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """Return few of the differing settings that give each group other values; of equally good ones those of precision.

    Each choice is the one that tells most groups apart together with those before it.
    """
    chosen: list[str] = []

    def apart(names: Sequence[str]) -> int:
        return len({tuple(entry.get(name) for name in names) for entry in settings})

    # The schedule first: cyclic ones come with min_bits of their own.
    candidates = sorted(differing, key=lambda name: (name != "precision.schedule", not name.startswith("precision.")))
    while apart(chosen) < len(settings):
        chosen.append(max(candidates, key=lambda name: apart([*chosen, name])))
    return [name for name in differing if name in chosen]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys(name for entry in settings for name in entry)
    return [name for name in names if len({entry.get(name) for entry in settings}) > 1]


def _label(settings: Mapping[str, str], differing: Sequence[str], run: FinishedRun) -> str:
    if not differing:
        return run.recipe.name
    last_names = [name.rpartition(".")[2] for name in differing]
    shown = [
        f"{last if last_names.count(last) == 1 else name} {_value(name, settings[name])}"
        for name, last in zip(differing, last_names, strict=True)
        if settings.get(name) not in (None, "None")
    ]
    return ", ".join(shown) or run.recipe.name  # a group may lack all differing settings, such as weights


def _value(name: str, value: str) -> str:
    return f"{value[:12]}…" if name.endswith("_sha256") else value
