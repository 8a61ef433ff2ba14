"""The study of sharpness: what it measures, its statistics against SciPy's, and what its table says."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from cpt_deploy.analysis import Grid
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, prepare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MACHINE = {"cpu": "a", "cores": 1, "flags": [], "versions": {"onnxruntime": "1", "torch": "2"}}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the study."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sharpness_study")


def run_of(value: Callable[[], float], accuracy: float = 0.5) -> dict[str, Any]:
    """Return a run with measures from a function."""
    return {
        "accuracy": accuracy,
        "processor": "avx2",
        "relative": {"loss": value(), "eigenvalues": [value()], "trace": {"mean": value()}, "rise": value()},
        "absolute": {"eigenvalues": [value()], "trace": {"mean": value()}},
        "slice": [value() for _ in range(5)],
    }


@pytest.fixture
def runs(study: ModuleType) -> dict[str, dict[str, Any]]:
    """Return random measures for all runs of the study."""
    rng = np.random.default_rng(0)
    return {study.key(*cell): run_of(lambda: float(np.exp(rng.normal()))) for cell in study.cells()}


def test_comparisons_are_paired_t_tests_of_the_logarithms(study: ModuleType, runs: dict[str, Any]) -> None:
    for (name, steps, pair, measure), found in study.comparisons(runs, study.MEASURES).items():
        value = study.MEASURES[measure]
        logs = [[math.log(value(runs[study.key(name, steps, kind, seed)])) for seed in study.SEEDS] for kind in pair]
        expected = ttest_rel(*logs)
        interval = expected.confidence_interval(0.95)
        assert (found.seeds, found.p) == (len(study.SEEDS), pytest.approx(float(expected.pvalue)))
        assert found.mean - found.half == pytest.approx(float(interval.low))
        assert found.mean + found.half == pytest.approx(float(interval.high))


def test_every_measure_of_every_pair_is_compared(study: ModuleType, runs: dict[str, Any]) -> None:
    places = sum(len(block) for block in study.PLAN)
    assert len(study.comparisons(runs, study.MEASURES)) == places * len(study.PAIRS) * len(study.MEASURES) == 54
    assert len(runs) == places * len(study.KINDS) * len(study.SEEDS) == 72


def test_runs_are_those_of_the_study_of_accuracy(study: ModuleType) -> None:
    assert set(study.cells()) < set(study.learning_study.cells())


def test_a_constant_ratio_is_found_and_marked(study: ModuleType) -> None:
    factors = {"static8": 1.0, "cpt": 0.5, "static5": 2.0}
    rng = np.random.default_rng(0)
    runs = {}
    for cell in study.cells():
        scale = factors[cell[2]] * 10 ** cell[3]
        runs[study.key(*cell)] = run_of(lambda scale=scale: float(scale * np.exp(1e-3 * rng.normal())))
    text = study.table(runs, {}, MACHINE)
    rows = [line for line in text.splitlines() if line.startswith("| trace, relative |")]
    assert len(rows) == 3
    for row in rows:
        assert row.count("(8)*") == 3
        assert [entry.split()[0] for entry in row.split("|")[3:6]] == ["0.50", "2.00", "0.25"]
    descriptions = [line for line in text.splitlines() if line.startswith(("| loss at", "| trace, relative, by loss"))]
    assert len(descriptions) == 6
    assert not any("*" in row for row in descriptions)


def test_values_without_a_logarithm_are_said_and_not_compared(study: ModuleType, runs: dict[str, Any]) -> None:
    runs["fashion/1000/cpt/3"]["relative"]["rise"] = 0.0
    row = next(line for line in study.table(runs, {}, MACHINE).splitlines() if line.startswith("| rise in the ball"))
    entries = [entry.strip() for entry in row.split("|")[3:6]]
    assert entries[0] == entries[2] == "not above 0"
    assert "[" in entries[1]


def test_missing_runs_are_counted_and_leave_fewer_pairs(study: ModuleType, runs: dict[str, Any]) -> None:
    del runs["fashion/1000/static8/3"], runs["fashion/1000/cpt/5"]
    text = study.table(runs, {}, MACHINE)
    assert text.startswith("70 of 72 runs.")
    row = next(line for line in text.splitlines() if line.startswith("| trace, relative |"))
    assert [entry.split("(")[1][0] for entry in row.split("|")[3:6]] == ["6", "7", "7"]


def test_accuracies_are_compared_with_runs_of_the_same_kind_of_processor(study: ModuleType, runs: dict) -> None:
    others = {
        "fashion/1000/cpt/0": {"accuracy": 0.5, "processor": "avx2"},
        "fashion/1000/cpt/1": {"accuracy": 0.75, "processor": "avx2"},
        "fashion/1000/cpt/2": {"accuracy": 0.5, "processor": "avx512_bf16"},
        "digits/1000/cpt/2": {"accuracy": 0.5, "processor": "avx2"},
    }
    assert study.agreement(runs, others) == (1, 2)


def test_bands_are_intervals_of_the_geometric_mean(study: ModuleType) -> None:
    mean, low, high = study.band([[1.0, 1.0], [math.e**2, 1.0]])
    # Two values: standard error 1 and a quantile of 12.706 with one degree of freedom.
    assert mean == pytest.approx([math.e, 1.0])
    assert low == pytest.approx([math.exp(1 - 12.7062047), 1.0])
    assert high == pytest.approx([math.exp(1 + 12.7062047), 1.0])


def test_rises_on_slices_are_means_over_signs_and_directions(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    bits32 = QuantizationConfig(min_bits=32, max_bits=32)
    images = torch.rand(8, *shape)
    model = prepare(build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8)), images, bits32).eval()
    batches = ((images, torch.arange(8)),)
    monkeypatch.setattr(study, "DIRECTIONS", 2)
    monkeypatch.setattr(study, "GRID", Grid(points=5, extent=0.4, dimensions=1))
    lines = [study.landscape_of(model, batches, study.GRID, seed=seed) for seed in (6, 7)]
    near = [line.losses[0][index] - line.centre.loss for line in lines for index in (1, 3)]
    far = [line.losses[0][index] - line.centre.loss for line in lines for index in (0, 4)]
    assert study.slice_rises(model, batches, 3) == pytest.approx([np.mean(near), np.mean(far)])


@pytest.mark.slow
def test_a_run_is_measured_kept_and_shown(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    written: list[Any] = []
    monkeypatch.setattr(study, "write_results", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(study, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(study, "PLAN", ((("digits", 300),),))
    monkeypatch.setattr(study, "SEEDS", range(2))
    monkeypatch.setattr(study, "settings", lambda *cell: [*study.learning_study.settings(*cell), "train.steps=8"])
    monkeypatch.setattr(study, "IMAGES", 20)
    monkeypatch.setattr(study, "DIRECTIONS", 1)
    monkeypatch.setattr("sys.argv", ["sharpness_study.py"])
    study.main()
    runs = json.loads((tmp_path / "sharpness_study.json").read_text(encoding="utf-8"))["runs"]
    assert list(runs) == [study.key(*cell) for cell in study.cells()]
    for run in runs.values():
        assert len(run["slice"]) == len(study.DISTANCES)
        assert run["relative"]["eigenvalues"][0] > 0
        assert run["absolute"]["trace"]["mean"] != run["relative"]["trace"]["mean"]
    assert written[0][2].startswith("6 of 6 runs.")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    monkeypatch.setattr(study, "measured", lambda *cell: pytest.fail("a finished run is not measured again"))
    study.main()
    assert written[1] == written[0]
    assert "digits/300/static5/1" in capsys.readouterr().err
    monkeypatch.setattr(study, "measured", lambda *cell: {**runs[study.key(*cell)], "slice": [0.0] * 5})
    monkeypatch.setattr("sys.argv", ["sharpness_study.py", "--cell", "digits/300/cpt/1"])
    study.main()
    rows = [[entry.strip() for entry in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][1:4] == ["digits/300/cpt/1", "now", "recorded"]
    assert {row[1]: row[2] == row[3] for row in rows[2:]} == {
        measure: "slice" not in measure for measure in {**study.MEASURES, **study.DESCRIPTIONS}
    }
    monkeypatch.setattr("sys.argv", ["sharpness_study.py", "--cell", "digits/300/cpt/9"])
    with pytest.raises(SystemExit):
        study.main()
    assert "expected a run of the study such as" in capsys.readouterr().err


def test_images_are_among_those_that_the_run_was_trained_on(study: ModuleType, tmp_path: Path) -> None:
    words = ["data.limit=100", "train.epochs=null", "train.steps=8", "train.eval_every=null", "train.device=cpu"]
    study.train(study.load_recipe("digits-quickstart", words), tmp_path / "run")
    run = study.load_run(tmp_path / "run")
    batches = study.training_images(run, 1000, 0)
    assert sum(len(labels) for _, labels in batches) == 100
    few = study.training_images(run, 10, 1)
    everything = torch.cat([inputs for inputs, _ in batches]).flatten(1)
    found = (torch.cat([inputs for inputs, _ in few]).flatten(1)[:, None] == everything).all(dim=2).any(dim=1)
    assert len(found) == 10
    assert found.all()
