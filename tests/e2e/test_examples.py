"""The programs in examples/ do what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, OnnxRuntimeModel

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    specification = importlib.util.spec_from_file_location(Path(name).name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with the images that the first example writes."""
    folder = tmp_path_factory.mktemp("examples")
    load("own_images/make_photos").main(str(folder / "photos"))
    return folder


@pytest.fixture
def typed(capsys):
    """Types a command with --json and returns its result."""

    def run(*words: object) -> dict[str, Any]:
        code = main([*map(str, words), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        result: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
        return result

    return run


def test_a_folder_of_images_becomes_a_bundle_that_passes(typed, photos, monkeypatch):
    monkeypatch.chdir(photos)
    short = ("model.name=tiny", "train.epochs=1", "precision.cycles=1", "data.limit=128", "data.input.size=[8, 8]")
    run = typed("train", EXAMPLES / "own_images" / "recipe.yaml", *short)["run"]
    assert run == "runs/photos"
    bundle = typed("export", run)["bundle"]
    report = typed("validate", bundle, "--data", "photos", "--limit", 100, "--max-drop", 10)
    assert report["integers"]["mismatching"] == 0 < report["integers"]["compared"]
    assert Path(bundle, "labels.txt").read_text().split() == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_a_torchvision_network_is_fine_tuned(typed, photos, monkeypatch):
    monkeypatch.chdir(photos)
    load("fine_tuning/save_weights").main("resnet18.pth", pretrained=False)
    small = ("data.input.size=[32, 32]", "data.input.resize=32", "data.limit=16", "train.batch_size=8")
    short = ("train.epochs=1", "train.calibration_batches=1", "precision.cycles=1")
    done = typed("train", EXAMPLES / "fine_tuning" / "recipe.yaml", *small, *short)
    assert done["report"]["model"]["weights"]["file"].endswith("resnet18.pth")
    assert done["report"]["classes"] == [str(digit) for digit in range(10)]
    assert typed("export", done["run"])["golden"]["mismatches"] == 0


def test_an_onnx_file_from_elsewhere_is_exported_on_a_file_of_inputs(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("onnx_file/make_files").main(".")
    bundle = Bundle.open(typed("export", "--from", "model.onnx", "--data", "inputs.npz")["bundle"])
    rows = dict(np.load("inputs.npz"))
    wanted = onnxruntime.InferenceSession("model.onnx").run(None, rows)
    given = OnnxRuntimeModel(bundle.onnx_path, bundle.signature).run(rows)
    for values, name in zip(wanted, ("kind", "mask"), strict=True):
        error = np.square(values - given[name]).mean()
        assert 10 * np.log10(np.square(values).mean() / error) > 25  # dB
    predicted = typed("predict", bundle.path, "--inputs", "inputs.npz")
    assert len(predicted["predictions"]) == 64


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
