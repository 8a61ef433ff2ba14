"""Runs of language models on the command line: what is refused, and why."""

import pytest

from cpt_cli.main import main


@pytest.fixture
def run(tmp_path):
    """A directory that looks like the run of a language model, with nothing in it that could be exported."""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("data: {task: text-generation}")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected", "reason"),
    [
        (("--activations", "symmetric"), "affine activations", "MatMulInteger"),
        (("--format", "torchscript"), "--format torchscript", "no PyTorch program"),
        (("--format", "pt2,torchscript"), "--format pt2,torchscript", "model.onnx"),
        (("--bits", "4", "--budget", "0.5"), "both", "bits of each layer"),
    ],
)
def test_options_that_language_models_do_not_have_are_refused_with_a_reason(capsys, run, words, expected, reason):
    before = sorted(run.iterdir())
    assert main(["export", str(run), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: Expected")
    assert expected in lines[0]
    assert lines[1].startswith("hint: ")
    assert reason in lines[1]
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("command", ["export", "sweep"])
def test_an_unfinished_run_is_one_line(capsys, run, command):
    assert main([command, str(run)]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert "Traceback" not in "".join(lines)
    assert not (run / "sweep").exists()
