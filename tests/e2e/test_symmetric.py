"""`cpt export --activations symmetric`: calibrated, exact in onnxruntime, recorded, and an edited file is noticed."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cpt_cli.main import main


@pytest.fixture(scope="module")
def symmetric(run_dir: Path) -> Path:
    assert main(["export", str(run_dir), "--activations", "symmetric", "--quiet"]) == 0
    return run_dir / "bundle-8bit-symmetric"


def test_the_bundle_is_exact_and_says_what_it_is(symmetric, capsys, bundle):
    assert main(["validate", str(symmetric), "--data", "digits", "--max-drop", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0
    assert report["integers"]["compared"] > 1_000_000
    assert report["constants"]["differences"] == []
    assert set(report["graph"]["float_operators"]) == {"Relu"}
    assert report["non_inferiority"]["low"] <= 0.01  # a loss of more than a point is not shown; an image is 0.28 points
    quantization = json.loads((symmetric / "quantization.json").read_text())
    assert all(entry["symmetric"] and entry["zero_point"] == 0 for entry in quantization["activations"])
    assert json.loads((symmetric / "config.json").read_text())["cpt"]["activations"] == "symmetric"
    assert "| activations | symmetric |" in (symmetric / "README.md").read_text()
    usual = json.loads((bundle / "quantization.json").read_text())
    assert not any(entry["symmetric"] for entry in usual["activations"])


def _shifted_bias(constants):
    name = next(name for name in constants if name.endswith(".bias"))
    array = numpy_helper.to_array(constants[name]).copy()
    array[0] += 1e-3
    constants[name].CopyFrom(numpy_helper.from_array(array, name))
    return "bias"


def _moved_zero_point(constants):
    constants["code_0"].CopyFrom(numpy_helper.from_array(np.array(1, np.int8), "code_0"))
    return "zero point"


@pytest.mark.parametrize("edit", [_shifted_bias, _moved_zero_point])
def test_one_edited_constant_is_named(symmetric, tmp_path, capsys, edit):
    copy = shutil.copytree(symmetric, tmp_path / "copy")
    model = onnx.load(copy / "model.onnx")
    part = edit({initializer.name: initializer for initializer in model.graph.initializer})
    onnx.save(model, copy / "model.onnx")
    digest = hashlib.sha256((copy / "model.onnx").read_bytes()).hexdigest()
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    fitted = [f"{digest}  model.onnx" if line.endswith("  model.onnx") else line for line in lines]
    (copy / "SHA256SUMS").write_text("\n".join(fitted) + "\n")
    assert main(["validate", str(copy)]) == 4
    assert f"{part} differ" in capsys.readouterr().err


def test_fewer_bits_are_refused_and_nothing_is_written(run_dir, tmp_path, capsys):
    words = ["--activations", "symmetric", "--act-bits", "4", "--out", str(tmp_path / "none")]
    assert main(["export", str(run_dir), *words]) == 2
    assert "8 bits to make them symmetric" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
