"""The learning study: its plan, its statistics, and table and picture from recorded runs."""

import argparse
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import ttest_rel

from cpt_deploy.recipe import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def study(benchmark) -> ModuleType:
    return benchmark("learning_study")


@pytest.fixture
def paired(benchmark) -> ModuleType:
    return benchmark("paired_differences")


@pytest.fixture
def report(benchmark) -> ModuleType:
    return benchmark("learning_study_report")


def invented(study: ModuleType, seeds: int = 8) -> dict[str, dict[str, Any]]:
    """Return a result for each cell of the first seeds, with one kind far better and one far worse than the others."""
    source, runs = random.Random(0), {}
    for cell in study.cells():
        name, _, kind, seed = cell
        if seed < seeds:
            gain = {"float32": 0.2, "static5": -0.2}.get(kind, 0) + source.uniform(-0.01, 0.01)
            measured = {"loss": 0.5 - gain, "processor": f"seed {seed % 2}", "cpu_seconds": 1 + (kind == "cpt")}
            runs[study.key(*cell)] = {study.SETS[name].metric: 0.5 + gain, **measured}
    return runs


def test_recorded_runs_belong_to_the_plan_and_their_metrics_are_there(study):
    recorded = json.loads((BENCHMARKS / "results/learning_study.json").read_text(encoding="utf-8"))["runs"]
    metrics = {study.key(*cell): study.SETS[cell[0]].metric for cell in study.cells()}
    assert len(metrics) == sum(1 for _ in study.cells())
    for cell, run in recorded.items():
        assert {metrics[cell], "loss", "processor", "cpu_seconds"} <= set(run)


def test_every_kind_of_run_is_a_recipe_and_has_a_partner_a_title_and_a_line(study, report):
    first = {(name, kind): (name, steps, kind, seed) for name, steps, kind, seed in reversed(list(study.cells()))}
    planned = set(study.cells())
    for (name, kind), cell in first.items():
        recipe = load_recipe(study.SETS[name].preset, study.settings(*cell))
        assert (recipe.train.steps, recipe.seed, recipe.precision.cycles) == (cell[1], cell[3], study.CYCLES)
        assert recipe.precision.ends == ("scheduled" if name == "shakespeare" else "fixed")
        assert (name, cell[1], study.REFERENCES.get(kind, study.REFERENCE), cell[3]) in planned
        assert kind in study.TITLES
        assert kind == study.REFERENCE or kind in report.STYLES


@pytest.mark.parametrize(("text", "expected"), [("1/1", (0, 1)), ("1/2", (0, 2)), ("2/2", (1, 2)), ("3/10", (2, 10))])
def test_shares_are_read(study, text: str, expected: tuple[int, int]):
    assert study.share(text) == expected


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2"])
def test_other_shares_are_refused(study, text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="part of a whole"):
        study.share(text)


def test_a_run_is_found_by_its_name(study):
    assert study.planned_cell("fashion/1000/cpt/0") == ("fashion", 1000, "cpt", 0)
    line = study.command("fashion", 1000, "cpt", 0)
    assert line[:3] == ["cpt", "train", "digits-quickstart"]
    assert load_recipe(line[2], line[3:]).seed == 0
    assert study.command("shakespeare", 300, "cpt-5-8", 7)[2] == "ptb-lstm"


@pytest.mark.parametrize("text", ["fashion/1000/cpt/8", "digits/10000/cpt/0", "fashion/1000/cpt", "cpt"])
def test_runs_outside_of_the_study_are_refused(study, text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="expected set/steps/kind/seed"):
        study.planned_cell(text)


@pytest.mark.parametrize(("name", "metric", "sign"), [("digits", "accuracy", 1), ("shakespeare", "loss", -1)])
def test_differences_are_those_of_a_paired_t_test(study, name: str, metric: str, sign: int):
    source, runs = random.Random(1), {}
    values: dict[str, list[float]] = {"float32": [], "static8": []}
    for seed in study.SEEDS:
        for kind, of_kind in values.items():
            of_kind.append(source.uniform(0.7, 0.9))
            runs[study.key(name, 300, kind, seed)] = {metric: of_kind[-1]}
    expected = ttest_rel(*([100 * sign * value for value in of_kind] for of_kind in values.values()))
    interval = expected.confidence_interval(0.95)
    found = study.difference(runs, name, 300, "float32")
    assert found.seeds == 8
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((interval.low, interval.high))


def test_only_pairs_count(study):
    runs = {study.key("digits", 300, kind, seed): {"accuracy": 0.1 * seed} for kind in ("cpt",) for seed in range(4)}
    assert study.difference(runs, "digits", 300, "cpt") is None
    runs |= {study.key("digits", 300, "static8", seed): {"accuracy": 0.1 * seed} for seed in (1, 2, 7)}
    assert study.difference(runs, "digits", 300, "cpt").seeds == 2


def test_differences_without_spread_have_a_p_value(paired):
    assert paired.mean_difference([0.0, 0.0, 0.0]).p == 1
    assert paired.mean_difference([1.0, 1.0, 1.0]).p == 0


def test_holms_correction_equals_one_by_hand(paired):
    differences = {
        name: paired.Difference(8, 0, 1, 1, p) for name, p in zip("abcd", (0.01, 0.04, 0.03, 0.005), strict=True)
    }
    assert paired.corrected(differences) == pytest.approx({"d": 4 * 0.005, "a": 3 * 0.01, "c": 2 * 0.03, "b": 2 * 0.03})
    assert paired.corrected(differences, 6) == pytest.approx({"d": 0.03, "a": 0.05, "c": 0.12, "b": 0.12})
    assert paired.corrected({"e": paired.Difference(8, 0, 1, 1, 0.7)}, 2) == {"e": 1.0}


def test_the_correction_counts_every_comparison_of_the_study_with_those_of_text(study):
    found = study.compared(invented(study))
    planned = sum(1 for _ in study.cells()) // len(study.SEEDS)
    references = len({(name, steps) for name, steps, _, _ in study.cells()})
    assert len(found) == planned - references
    assert ("shakespeare", 3000, "cpt-5-8") in found
    value, p = min(found.values(), key=lambda entry: entry[0].p)
    assert p == pytest.approx(len(found) * value.p)


def test_the_table_says_how_far_the_study_has_come(study, report):
    runs = invented(study)
    text = report.table(runs)
    assert text.startswith(f"{len(runs):,} of {len(runs):,} runs: the study has ended.")
    assert "**Shakespeare, 1,003,856 bytes** (104 of 104 runs)" in text
    float32 = [line for line in text.splitlines() if line.startswith("| float32 |")]
    assert len(float32) == len(study.SETS)
    assert all(entry.strip().startswith("+") and "*" in entry for line in float32 for entry in line.split("|")[2:-2])
    times = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "cosine |" in line
    }
    assert times == {study.TITLES["cpt"]: "2.00", study.TITLES["cpt-5-8"]: "1.00"}
    del runs["shakespeare/300/float32/7"]
    assert f"{len(runs):,} of {len(runs) + 1:,} runs: the study has not ended." in report.table(runs)
    assert "(103 of 104 runs)" in report.table(runs)


def test_cells_without_all_seeds_have_no_star(study, report):
    assert "*" not in report.table(invented(study, seeds=7)).replace("**", "").replace("`*`", "")


@pytest.mark.parametrize("seeds", [0, 2, 8])
def test_the_picture_has_a_panel_per_data_set(study, report, tmp_path: Path, seeds: int):
    runs = invented(study, seeds)
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        report.draw(runs, path)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    figure = report.picture(runs)
    assert [axes.get_title() for axes in figure.axes] == [data.title for data in study.SETS.values()]
    for axes, (name, data) in zip(figure.axes, study.SETS.items(), strict=True):
        assert axes.get_title("left") == "↑ better"
        assert ("perplexity saved" in axes.get_ylabel()) == (name == "shakespeare")
        assert axes.get_xscale() == "log"
        low, high = axes.get_ylim()
        assert low < 0 < high
        lines = sum(len(line.get_xdata()) > 1 for line in axes.lines if line.get_linestyle() != "None")
        assert lines == 1 + (len(data.kinds) - 1 if seeds else 0)  # zero, and each kind but the one compared with
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    drawn = [title for kind, title in study.TITLES.items() if seeds and kind != study.REFERENCE]
    assert sorted(labels) == sorted(drawn)
