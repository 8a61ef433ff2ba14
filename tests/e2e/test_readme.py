"""README.md is typed as it stands: its commands in their order, with fewer epochs, and its program."""

import re
import shlex
import shutil
from pathlib import Path

import onnxruntime
import pytest
from sklearn.datasets import load_digits

from cpt_cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORTER = {
    "train": ["--epochs", "2", "precision.cycles=1"],
    "export": [],
    "validate": ["--limit", "100", "--allow-undecided"],
    "predict": [],
}


def commands() -> list[list[str]]:
    """Return the lines of the shell blocks as words, without their comments."""
    lines = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_the_first_commands_are_targets_of_make():
    typed = [words for words in commands() if words[0] == "make"]
    assert typed == [["make", "quickstart"], ["make", "test"]] == commands()[:2]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for _, target in typed)


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys, digits, start, ready):
    monkeypatch.chdir(tmp_path)
    Path("quickstart-output").mkdir()
    shutil.copy(digits[0], "quickstart-output/digit.png")  # `make quickstart` writes it
    others = [words for words in commands() if words[0] not in {"make", "."}]
    assert [words[:2] for words in others] == [["cpt", name] for name in (*SHORTER, "serve")]
    for _, name, *words in others[:-1]:
        assert main([name, *words, *SHORTER[name]]) == 0, capsys.readouterr().err
    assert "are the same" in capsys.readouterr().out
    path = tmp_path / others[-1][2]
    process = start("serve", path, "--port", "0", "--json", *others[-1][3:])
    try:
        assert process.stdout is not None
        ready(re.search(r"http://[\d.:]+", process.stdout.readline())[0], process)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_program_trains_and_writes_a_file_that_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(program, {})
    (printed,) = capsys.readouterr().out.splitlines()
    assert float(printed.partition("%")[0]) > 80
    # The file is portable: without the session option it computes the same.
    digits = load_digits()
    pixels = (digits.images[:, None] / 16).astype("float32")
    logits = onnxruntime.InferenceSession("net.onnx").run(None, {"image": pixels})[0]
    assert printed.startswith(f"{(logits.argmax(1) == digits.target).mean():.1%} ")


@pytest.mark.parametrize("extra", re.findall(r"pip install '\.\[(\w+)\]'", README))
def test_the_named_extras_exist(extra):
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
