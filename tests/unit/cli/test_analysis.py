"""`cpt landscape` and `cpt sharpness` on finished runs: files, figures, going on, and mistakes."""

import csv
import json

import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.analysis import Minimum, load_minimum
from cpt_deploy.analysis.minimum import mean_loss
from cpt_deploy.data import recipe_images
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import train
from cpt_deploy.training.evaluation import evaluate

SMALL = [
    "model.args.width=4",
    "train.epochs=1",
    "train.eval_every=null",
    "train.calibration_batches=2",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in (("cpt", []), ("static", ["precision.schedule=static"])):
        train(load_recipe("digits-quickstart", [*SMALL, *settings, f"name={name}"]), folder / name)
    return folder


def measured(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_centre_is_the_accuracy_that_the_run_reports(runs):
    minimum = load_minimum(runs / "cpt", split="test", images=10**6)
    report = json.loads((runs / "cpt" / "report.json").read_text())["test"]

    assert isinstance(minimum, Minimum)
    assert minimum.images == report["samples"]
    loss, accuracy = mean_loss(minimum.model, minimum.batches)
    assert (loss, accuracy) == (
        pytest.approx(report["loss"], rel=1e-5),
        pytest.approx(report["metrics"]["accuracy"], abs=1e-6),
    )
    again = evaluate(minimum.model, minimum.batches, classes=10, device=minimum.batches[0][0].device, step=0)
    assert again.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_training_images_are_those_that_a_limited_run_has_seen(tmp_path):
    recipe = load_recipe("digits-quickstart", [*SMALL, "data.limit=100", "train.batch_size=10"])
    train(recipe, tmp_path / "run")
    minimum = load_minimum(tmp_path / "run", split="train", images=10**6)
    assert minimum.images == 100
    labels = [int(label) for _, batch in minimum.batches for label in batch]
    assert labels == recipe_images(recipe.data, "train").labels.tolist()
    assert load_minimum(tmp_path / "run", split="test", images=10**6).images == 355


def test_a_landscape_is_drawn_and_gone_on_with(runs, tmp_path, capsys):
    out = tmp_path / "landscape"
    words = ["landscape", runs / "static", runs / "cpt", "--points", "5", "--images", "100", "--out", out]
    first = measured(capsys, *words, "--jobs", "2")

    assert [entry["name"] for entry in first["runs"]] == ["static", "cpt"]
    for entry in first["runs"]:
        assert len(entry["losses"]) == len(entry["losses"][0]) == 5
        assert entry["losses"][2][2] == entry["loss"] < entry["loss"] + entry["mean_rise"]
    whole = (out / "landscape.csv").read_text()
    assert len(list(csv.DictReader(whole.splitlines()))) == 50
    with Image.open(out / "landscape.png") as picture:
        assert picture.width > 800
    assert "<svg" in (out / "landscape.svg").read_text()

    lines = whole.splitlines(keepends=True)
    (out / "landscape.csv").write_text("".join(lines[:30]) + lines[30][:7])
    capsys.readouterr()
    assert main([*map(str, words)]) == 0
    assert "going on from 29 of 50 points" in capsys.readouterr().err
    assert (out / "landscape.csv").read_text() == whole


def test_a_line_has_one_row(runs, tmp_path, capsys):
    words = ["landscape", runs / "cpt", "--dimensions", "1", "--points", "3", "--images", "50", "--split", "test"]
    found = measured(capsys, *words, "--out", tmp_path / "line")
    assert [len(row) for row in found["runs"][0]["losses"]] == [3]
    assert (tmp_path / "line" / "landscape.png").is_file()


def test_sharpness_is_a_number_in_two_kinds_of_coordinates(runs, tmp_path, capsys):
    table = tmp_path / "sharpness.csv"
    few = ["--images", "100", "--probes", "3", "--steps", "2", "--tolerance", "0.1"]
    found = measured(capsys, "sharpness", runs / "cpt", *few, "--csv", table)

    absolute, relative = found["runs"]
    assert (absolute["coordinates"], relative["coordinates"]) == ("absolute", "relative")
    for entry in found["runs"]:
        assert entry["eigenvalues"][0] > 0
        assert entry["rise"] == max(0.0, *entry["rises"])
        assert entry["trace"]["probes"] == 3
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eigenvalue"]) for row in rows] == [entry["eigenvalues"][0] for entry in found["runs"]]
    assert measured(capsys, "sharpness", runs / "cpt", *few) == found


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["landscape", "RUN", "--points", "4"], 2, "odd number"),
        (["landscape", "RUN", "--extent", "0"], 2, "extent above 0"),
        (["landscape", "missing"], 5, "Expected a run"),
        (["sharpness", "missing"], 5, "Expected a run"),
        (["sharpness", "RUN", "--radius", "0", "--images", "8", "--probes", "1"], 2, "radius above 0"),
        (["sharpness", "RUN", "--device", "cuda:99"], 2, "Expected"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(runs / "cpt") if word == "RUN" else word for word in words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_another_landscape_is_not_overwritten(runs, tmp_path, capsys):
    words = ["landscape", str(runs / "cpt"), "--points", "3", "--images", "20", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err
