"""The programs in examples/ do what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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


def test_numpy_alone_reads_the_weights_that_are_executed(tmp_path, run_dir):
    assert main(["export", str(run_dir), "--bits", "4", "--out", str(tmp_path / "bundle"), "--quiet"]) == 0
    weights = load("read_codes").read_weights(tmp_path / "bundle")
    stored = onnx.load(tmp_path / "bundle" / "model.onnx")
    constants = {entry.name: numpy_helper.to_array(entry) for entry in stored.graph.initializer}
    assert set(weights) == {name.removesuffix(".weight_codes") for name in constants if name.endswith(".weight_codes")}
    shifts = {
        node.output[0].removesuffix(".weight_shifted"): int(constants[node.input[1]]).bit_length() - 1
        for node in stored.graph.node
        if node.output[0].endswith(".weight_shifted")
    }
    assert set(shifts.values()) <= {3, 4}  # a shift smaller by one where two codes could saturate in a pair
    for name, weight in weights.items():
        codes, scales = constants[f"{name}.weight_codes"], constants[f"{name}.weight_scales"]
        shift = shifts.get(name, 0)
        rearranged = codes.shape != weight.shape  # the first convolution is padded to four channels
        executed = codes[:, : weight.shape[1]] if rearranged else codes
        expected = (executed.astype(np.float32) * 2**shift) * scales.reshape(-1, *[1] * (codes.ndim - 1))
        assert np.array_equal(weight, expected)


def test_the_reader_needs_nothing_but_numpy(bundle):
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('cpt_deploy', 'torch', 'safetensors', 'onnx', 'onnxruntime'))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program = EXAMPLES / "read_codes.py"
    assert len(program.read_text().splitlines()) <= 30
    done = subprocess.run([sys.executable, "-c", code, program, bundle], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("conv1: (16, 1, 3, 3), ")


def test_the_client_of_the_standard_library_gets_predictions(server, digits, capsys, tmp_path):
    client = load("http_client")
    client.main(server, *map(str, digits[:3]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in digits[:3]]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit, match="400: "):
        client.main(server, str(broken))
