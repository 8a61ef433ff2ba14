"""`cpt recipes`: the list, a pattern, one in full, and names that are none; names work wherever a recipe does."""

import json

import pytest

from cpt_cli.main import main
from cpt_deploy.recipe import experiments, preset_names


def test_all_recipes_are_listed(capsys):
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert [row["name"] for row in rows] == preset_names()


def test_a_pattern_chooses_and_the_table_has_cost_and_the_papers_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes", "resnet74-cifar100-cpt3-*"]) == 0
    shown = capsys.readouterr().out
    assert "resnet74-cifar10-" not in shown
    line = next(line for line in shown.splitlines() if "cpt3-8" in line)
    for part in ("64,000", "36.7", "36.67 %", "~72.35 % (+0.91)", "resnet74-cifar100-static8"):
        assert part in line


def test_one_recipe_is_shown_in_full(capsys):
    assert main(["recipes", "resnet18-imagenet-cpt8-32", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["recipe"]["precision"]["min_bits"], shown["recipe"]["precision"]["max_bits"]) == (8, 32)
    assert shown["published"]["top1"] == {"value": 70.67, "source": "printed in a table"}
    assert "at most 8 bits" in shown["note"]
    assert main(["recipes", "resnet18-imagenet-cpt8-32"]) == 0
    assert "70.67 %, printed in a table" in capsys.readouterr().out


def test_a_figure_says_that_it_was_read_off_a_plot():
    for name, experiment in experiments().items():
        if "cifar100" in name:
            assert "read off a scatter plot" in experiment.figures["top1"].source


@pytest.mark.parametrize("command", ["recipes", "train", "range-test"])
def test_a_name_that_is_none_gets_the_nearest(capsys, command):
    assert main([command, "resnet75-cifar100-cpt3-8"]) == 2
    assert "did you mean resnet74-cifar100-cpt3-8" in capsys.readouterr().err


def test_experiments_are_trained_by_name(capsys, tmp_path):
    words = ["resnet38-cifar10-cpt3-8", f"data.root={tmp_path}", "--dry-run"]
    assert main(["train", *words]) == 5  # the recipe is found, its data are not
    assert "data set cifar10" in capsys.readouterr().err
    assert main(["train", "--smoke", "--bits", "auto"]) == 2
    assert "--smoke without --resume and --bits auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["precision.progressive.treshold=1"], "did you mean precision.progressive.threshold?"),
        (["precision.groups=[{mach: x}]"], "did you mean precision.groups.0.match?"),
        (["precision.groups=[{match: x, max_bits: 9}]"], "at most the model's 8, but got 9"),
        (["precision.groups=[{match: x, schedule: cosin}]"], "did you mean cosine"),
        (["precision.schedule=progressive", "precision.progressive.stages=[4, 8]"], "min_bits 3"),
    ],
)
def test_unknown_fields_get_the_nearest_name(capsys, words, part):
    assert main(["train", "digits-quickstart", *words]) == 2
    assert part in capsys.readouterr().err
