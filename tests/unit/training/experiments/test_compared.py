"""Runs beside each other: what makes a group, paired differences, and the command's table, plot and lines."""

import csv
import json
import shutil
import statistics

import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.errors import CheckpointError
from cpt_deploy.training import group_runs, read_finished_run, train

TINY = ("train.epochs=1", "train.eval_every=null")


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """Two seeds of CPT and of static precision, one of them with more workers, which changes nothing."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(recipe(*TINY, f"seed={seed}", f"name=cpt-{seed}"), folder / f"cpt{seed}")
        static = (
            "precision.schedule=static",
            f"seed={seed}",
            f"train.log_every={5 + seed}",
            f"data.cache_mb={100 + seed}",
        )
        train(recipe(*TINY, *static), folder / f"static{seed}")
    return folder


def test_runs_that_differ_by_their_seed_are_a_group(runs):
    groups = group_runs(read_finished_run(runs / name) for name in ("static1", "cpt0", "static0", "cpt1"))

    assert [group.label for group in groups] == ["schedule static", "schedule cosine"]
    assert [[run.path.name for run in group.runs] for group in groups] == [["static0", "static1"], ["cpt0", "cpt1"]]
    for group in groups:
        accuracies = [
            json.loads((run.path / "report.json").read_text())["test"]["metrics"]["accuracy"] for run in group.runs
        ]
        assert group.figures == tuple(accuracies)
        assert group.deviation == pytest.approx(statistics.stdev(accuracies))
    cpt, static = groups[1], groups[0]
    assert cpt.gbitops < static.gbitops
    assert cpt.paired_differences(static) == tuple(a - b for a, b in zip(cpt.figures, static.figures, strict=True))


def test_only_seeds_that_both_have_are_paired(runs):
    static, cpt = group_runs(read_finished_run(runs / name) for name in ("static0", "cpt0", "cpt1"))
    assert static.deviation is None
    assert len(cpt.paired_differences(static)) == 1


def test_unfinished_runs_are_refused(runs, tmp_path):
    shutil.copytree(runs / "cpt0", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "report.json").unlink()
    with pytest.raises(CheckpointError, match="an unfinished run"):
        read_finished_run(tmp_path / "unfinished")
    with pytest.raises(CheckpointError, match="no run"):
        read_finished_run(tmp_path)


def test_the_command_writes_table_and_picture(runs, tmp_path, capsys):
    names = [str(runs / name) for name in ("static0", "static1", "cpt0", "cpt1")]
    files = ["--plot", str(tmp_path / "compare.png"), "--csv", str(tmp_path / "compare.csv")]
    assert main(["compare", *names, *files, "--json"]) == 0

    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [len(group["paired_differences"]) for group in groups] == [0, 2]
    with (tmp_path / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [value for group in groups for value in group["figures"]]
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize("option", ["--plot", "--csv"])
def test_files_that_cannot_be_written_are_one_line(runs, tmp_path, capsys, option):
    assert main(["compare", str(runs / "cpt0"), option, str(tmp_path / "missing" / "file.png")]) in (2, 5)
    assert "Expected" in capsys.readouterr().err


def test_the_same_recipe_and_seed_count_once(runs, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs / "cpt0", copy)
    (tmp_path / "link").symlink_to(runs / "cpt0")
    names = [str(path) for path in (runs / "cpt0", copy, f"{runs / 'cpt0'}/", tmp_path / "link", runs / "cpt1")]

    assert main(["compare", *names, "--json"]) == 0
    shown = capsys.readouterr()
    (group,) = json.loads(shown.out)["groups"]
    assert (group["seeds"], len(group["figures"])) == ([0, 1], 2)
    assert group["not_counted"] == [str(copy), str(tmp_path / "link")]
    assert shown.err.count("is not counted") == 2
