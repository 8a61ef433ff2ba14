"""Runs on text on the command line: what is refused, and why."""

import pytest

from cpt_cli.main import main


@pytest.fixture
def run(tmp_path):
    """A directory that looks like the run of a language model, with nothing in it that could be exported."""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("data: {task: text-generation}")
    return tmp_path


def test_options_that_exclude_each_other_are_refused_with_a_reason(capsys, run):
    before = sorted(run.iterdir())
    assert main(["export", str(run), "--bits", "4", "--budget", "0.5"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: Expected")
    assert "both" in error
    assert "bits of each layer" in hint
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("command", ["export", "sweep"])
def test_an_unfinished_run_is_one_line(capsys, run, command):
    assert main([command, str(run)]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert "Traceback" not in "".join(lines)
    assert not (run / "sweep").exists()
