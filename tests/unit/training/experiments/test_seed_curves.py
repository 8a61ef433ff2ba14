"""Bands over seeds: mean and deviation at the steps that all logs have, and the bits of each step."""

import csv
import statistics

import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.errors import DataError
from cpt_deploy.report import plot_seed_curves
from cpt_deploy.training import group_runs, read_finished_run, seed_curves, train
from cpt_deploy.training.experiments.seed_curves import seed_band
from cpt_deploy.training.run_directory.metrics_log import read_metrics

pytestmark = pytest.mark.slow  # trains several runs; test_compared.py has the table of such runs by default


def rows(values):
    return [{"step": str(step), "loss": value} for step, value in values.items()]


def test_a_band_has_the_steps_that_all_logs_have():
    band = seed_band([rows({5: "1.0", 10: "0.5", 15: ""}), rows({5: "3.0", 6: "9", 10: "0.5", 15: "1"})], "loss")
    assert (band.steps, band.means) == ([5, 10], [2.0, 0.5])
    assert band.deviations == [pytest.approx(2**0.5), 0.0]
    assert seed_band([rows({5: "1.0"})], "loss").deviations is None


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(recipe(f"seed={seed}", "train.log_every=1"), folder / f"cpt{seed}")
    train(recipe("precision.schedule=static"), folder / "static0")
    return folder


def test_curves_of_a_group_are_those_of_its_logs(runs):
    (group,) = group_runs(read_finished_run(runs / name) for name in ("cpt0", "cpt1"))
    curves = seed_curves(group)

    logs = [read_metrics(runs / name / "metrics.csv") for name in ("cpt0", "cpt1")]
    for index, step in enumerate(curves.loss.steps):
        values = [float(row["loss"]) for log in logs for row in log if row["step"] == str(step) and row["loss"]]
        assert curves.loss.means[index] == pytest.approx(statistics.fmean(values))
        assert curves.loss.deviations[index] == pytest.approx(statistics.stdev(values))
    assert curves.held_out.steps == [11, 22]  # the calibrated evaluation is another model's
    logged = {int(row["step"]): int(row["bits"]) for row in logs[0] if row["bits"]}
    assert logged == {step: curves.bits[step - 1] for step in logged}  # after a step its bits are the last ones


def test_the_command_draws_and_writes_them(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("static0", "cpt0", "cpt1")]
    for suffix in ("png", "svg"):
        picture, table = tmp_path / f"curves.{suffix}", tmp_path / "curves.csv"
        assert main(["compare", *names, "--curves", str(picture), "--curves-csv", str(table)]) == 0
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["figure"] for line in lines} == {"loss", "accuracy", "test_accuracy", "bits"}
    static = [line for line in lines if line["group"] == "schedule static"]
    assert {line["mean"] for line in static if line["figure"] == "bits"} == {"8"}
    assert {line["deviation"] for line in static} == {""}
    assert "wrote" in capsys.readouterr().err


def test_bits_are_logged_ones_where_the_schedule_is_gone(runs, tmp_path):
    run = read_finished_run(runs / "cpt0")
    precision = run.recipe.precision.model_copy(update={"schedule": "gone.away:schedule"})
    gone = type(run)(run.path, run.recipe.model_copy(update={"precision": precision}), run.report)
    curves = seed_curves(group_runs([gone])[0])
    assert curves.bit_steps[0] == 1
    assert len(curves.bits) == 22
    plot_seed_curves([curves], tmp_path / "curves.svg")


def test_bits_that_follow_the_losses_are_logged_ones(runs):
    run = read_finished_run(runs / "cpt0")
    precision = run.recipe.precision.model_copy(update={"schedule": "progressive"})
    adaptive = type(run)(run.path, run.recipe.model_copy(update={"precision": precision}), run.report)
    curves = seed_curves(group_runs([adaptive])[0])
    logged = [int(row["bits"]) for row in read_metrics(run.path / "metrics.csv") if row["bits"]]
    assert curves.bits == logged


def test_a_log_that_is_missing_is_one_line(runs, tmp_path):
    run = read_finished_run(runs / "cpt0")
    (group,) = group_runs([type(run)(tmp_path, run.recipe, run.report)])
    with pytest.raises(DataError, match="log of a run"):
        seed_curves(group)
