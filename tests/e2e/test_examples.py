"""The programs in examples/ do what they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cpt_cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_model_and_loop_of_ones_own_end_in_a_bundle_that_passes(tmp_path, capsys, monkeypatch):
    example = load("train_custom_model")
    monkeypatch.setattr(example, "EPOCHS", 3)
    assert example.main(str(tmp_path / "bundle")) > 0.7
    assert "in onnxruntime" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "bundle"), "--data", "digits", "--limit", "100", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0
    assert report["graph"]["float_operators"] == {}


def test_a_model_by_import_path_trains_and_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(EXAMPLES / "custom_model")
    monkeypatch.setattr("sys.path", [*sys.path])
    run = tmp_path / "run"
    words = ["train", "recipe.yaml", "--epochs", "2", "--out", str(run), "model.args.width=8", "--quiet"]
    assert main(words) == 0
    assert main(["export", str(run), "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["golden"]["mismatches"] == 0


def test_the_client_of_the_standard_library_gets_predictions(server, digits, capsys, tmp_path):
    client = load("http_client")
    client.main(server, *map(str, digits[:3]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in digits[:3]]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit, match="400: "):
        client.main(server, str(broken))
