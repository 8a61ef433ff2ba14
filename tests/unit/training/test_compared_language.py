"""Language models beside each other: perplexity in table, picture, lines and curves, and never beside accuracy."""

import csv
import json
import math
import statistics

import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.errors import UsageError
from cpt_deploy.metric import PERPLEXITY
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import TrialOutcome, TrialQueue, group_runs, read_finished_run, train
from cpt_deploy.workflows.experiments.trial_processes import _outcome

pytestmark = pytest.mark.slow  # trains four models; comparing is tested with one kind of run by default

SETTINGS = (
    "model.args={embedding: 8, hidden: 8, layers: 1, dropout: 0.0}",
    "train.steps=6",
    "train.epochs=null",
    "data.text.sequence=8",
    "train.batch_size=4",
    "train.eval_batch_size=4",
    "train.eval_every=3 steps",
    "train.log_every=3",
    "train.checkpoint_every=null",
    "train.calibration_batches=1",
    "train.device=cpu",
    "precision.cycles=2",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("the one and the other and the next\n" * 100)
    for seed in (0, 1):
        settings = [*SETTINGS, f"data.name={folder / 'text.txt'}", f"seed={seed}"]
        train(load_recipe("ptb-lstm", settings), folder / f"cpt{seed}")
    train(load_recipe("ptb-lstm", [*settings, "precision.schedule=static"]), folder / "static1")
    train(recipe("train.epochs=1", "train.eval_every=null"), folder / "images")
    return folder


def test_table_lines_and_pictures_have_perplexity(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("static1", "cpt0", "cpt1")]
    files = [f"{option}={tmp_path / name}" for option, name in (
        ("--plot", "compare.png"), ("--csv", "compare.csv"), ("--curves", "curves.png"), ("--curves-csv", "curves.csv")
    )]  # fmt: skip
    assert main(["compare", *names, *files]) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert "accuracy" not in shown
    assert "%" in shown  # of the first's cost
    assert main(["compare", *names, "--json"]) == 0
    static, cpt = json.loads(capsys.readouterr().out)["groups"]
    tests = [json.loads((runs / name / "report.json").read_text())["test"] for name in ("static1", "cpt0", "cpt1")]
    wanted = [math.exp(test["loss"]) for test in tests]
    assert [*static["figures"], *cpt["figures"]] == pytest.approx(wanted)
    assert cpt["mean"] == pytest.approx(statistics.fmean(wanted[1:]))
    assert cpt["deviation"] == pytest.approx(statistics.stdev(wanted[1:]))
    assert cpt["paired_differences"] == pytest.approx([wanted[2] - wanted[0]])
    assert f"{static['mean']:.2f}" in shown
    with (tmp_path / "compare.csv").open(newline="") as file:
        assert [float(row["perplexity"]) for row in csv.DictReader(file)] == pytest.approx(wanted)
    with (tmp_path / "curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["figure"] for line in lines} == {"loss", "perplexity", "test_perplexity", "bits"}
    assert [line["step"] for line in lines if line["figure"] == "test_perplexity"] == ["3", "6"] * 2
    for name in ("compare.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800


def test_classifiers_and_language_models_are_not_mixed(runs, capsys):
    with pytest.raises(UsageError, match="judged by the same metric"):
        group_runs(read_finished_run(runs / name) for name in ("cpt0", "images"))
    assert main(["compare", str(runs / "images"), str(runs / "cpt0")]) == 2
    error = capsys.readouterr().err
    assert f"perplexity ({runs / 'cpt0'})" in error
    assert "Traceback" not in error


def test_a_grid_keeps_the_perplexity_of_a_trial(tmp_path):
    pytest.importorskip("optuna")
    metrics = {"accuracy": 0.25, "perplexity": 81.5}
    report = {"metric": PERPLEXITY.to_dict(), "test": {"metrics": metrics}}
    outcome = _outcome(0, json.dumps({"report": report}))
    assert outcome == TrialOutcome("finished", 81.5, metric=PERPLEXITY)
    TrialQueue(tmp_path, {"text": "settings"}).work(lambda _: outcome)
    (status,) = TrialQueue(tmp_path, {"text": "settings"}).outcomes().values()
    assert (status.state, status.figure, status.metric) == ("finished", 81.5, PERPLEXITY)
