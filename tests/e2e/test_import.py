"""A float model that was trained elsewhere, from its file to a prediction, as a user without a run would type it."""

import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle
from cpt_deploy.export import write_float_onnx
from cpt_deploy.onnx_graph.float_network import float_model
from cpt_deploy.training import load_run
from tests.unit.serving.conftest import connect


@pytest.fixture(scope="module")
def foreign(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a float network as ONNX and as weights; it happens to be that of the run."""
    folder = tmp_path_factory.mktemp("foreign")
    run = load_run(run_dir)
    (folder / "digits.onnx").write_bytes(write_float_onnx(run.model))
    torch.save({"state_dict": float_model(run.model).state_dict()}, folder / "digits.pt")
    return folder


@pytest.fixture
def typed(capsys):
    """Types a command line with --json and returns its result."""

    def run(*words: object) -> dict[str, object]:
        code = main([*(str(word) for word in words), "--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


def test_an_onnx_file_is_calibrated_validated_and_served(typed, foreign, digits):
    done = typed("export", "--from", foreign / "digits.onnx", "--data", "digits")
    bundle = Path(done["bundle"])
    assert bundle == foreign / "digits-bundle-8bit"
    assert done["golden"]["mismatches"] == 0
    facts = done["facts"]
    assert (facts["quantization"], facts["calibration_images"], facts["source_file"]) == (
        "calibrated only", 512, "digits.onnx",
    )  # fmt: skip
    assert facts["calibration_accuracy"] > 0.8
    assert "trained_bits" not in facts

    # the float model lies around the bundle and is what the bundle is measured against; calibration alone may cost some
    # of the 355 images
    report = typed("validate", bundle, "--data", "digits", "--max-drop", 5)
    assert report["passed"]
    assert report["reference"] == "float model"
    assert (report["integers"]["mismatching"], report["graph"]["float_operators"]) == (0, {})
    trained, served = (next(r for r in report["runtimes"] if r["name"] == n) for n in ("trained", "onnxruntime"))
    assert abs(trained["accuracy"] - served["accuracy"]) < 0.02
    assert any(pair["first"] == "trained" and pair["p_value"] is not None for pair in report["comparisons"])
    card = (bundle / "README.md").read_text()
    assert "post-training-quantization" in card
    assert "cyclic" not in card.lower()
    assert "Accuracy (float model)" in card
    assert json.loads((bundle / "quantization.json").read_text())["method"] == "calibrated only"

    predicted = typed("predict", bundle, *digits)["results"]
    right = [entry["predictions"][0]["label"] == Path(entry["image"]).stem[-1] for entry in predicted]
    assert sum(right) >= 8

    timed = typed("benchmark", bundle, "--batch", "1", "--seconds", 0.05)
    assert {entry["model"] for entry in timed["latencies"]} == {"bundle", "float32", "onnxruntime static"}


def test_weights_come_with_their_model_and_other_options_are_kept(typed, capsys, foreign, tmp_path, run_dir):
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(f"number {digit}" for digit in range(10)))
    out, architecture = tmp_path / "out", load_run(run_dir).recipe.model.name
    words = ["--model", architecture, "--data", "digits", "--bits", 4, "--calibration-batches", 3, "--labels", labels]
    facts = typed("export", "--from", foreign / "digits.pt", *words, "--name", "mine", "--out", out)["facts"]
    assert (facts["weight_bits"], facts["calibration_images"], facts["source_model"]) == (4, 96, architecture)
    assert (out / "labels.txt").read_text().splitlines()[3] == "number 3"
    # far from its file the bundle is measured by itself, or against the file that is named
    alone = typed("validate", out, "--data", "digits", "--limit", 40)
    assert all(runtime["name"] != "trained" for runtime in alone["runtimes"])
    words = ["--from", foreign / "digits.pt", "--max-drop", 20, "--allow-undecided"]
    report = typed("validate", out, "--data", "digits", "--limit", 40, *words)
    assert report["integers"]["mismatching"] == 0
    assert report["drop"] is not None
    assert main(["validate", str(out), "--data", "digits", "--from", str(foreign / "digits.onnx")]) == 2
    assert "is another file" in capsys.readouterr().err


def test_the_bytes_of_images_give_the_same_answers_from_a_file_and_from_a_run(
    typed, foreign, run_dir, digits, tmp_path
):
    words = ["export", "--from", foreign / "digits.onnx", "--data", "digits", "--calibration-batches", 2]
    plain, taking = (
        typed(*words, "--out", tmp_path / name, *more)["bundle"]
        for name, more in (("plain", []), ("bytes", ["--input", "uint8", "--layout", "NCHW"]))
    )
    answers = [typed("predict", bundle, *digits)["results"] for bundle in (plain, taking)]
    assert answers[0] == answers[1]
    report = typed("validate", taking, "--data", "digits", "--from", foreign / "digits.onnx", "--max-drop", 5)
    assert report["passed"]
    assert report["integers"]["mismatching"] == 0
    of_run = Bundle.open(Path(typed("export", run_dir, "--input", "uint8", "--out", tmp_path / "run")["bundle"]))
    assert typed("validate", of_run.path, "--data", "digits", "--run", run_dir, "--max-drop", 5)["drop"] is not None
    image = of_run.golden.inputs["image"][:1]
    assert (image.dtype.name, image.shape) == ("uint8", (1, 8, 8, 1))
    file = BytesIO()
    Image.fromarray(image[0, :, :, 0]).save(file, "PNG")
    with connect(of_run) as client:
        uploaded = client.post("/predict", files={"file": file.getvalue()}).json()
        name = client.get("/v2/models/" + of_run.name).json()["inputs"][0]
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(image.shape), "data": image.ravel().tolist()}
        tensors = client.post(f"/v2/models/{of_run.name}/infer", json={"inputs": [tensor]}).json()
        floats = client.post("/predict", json={"instances": [[[0.5] * 8] * 8]})
    assert name == {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}
    wanted = of_run.golden.outputs["logits"][0]
    np.testing.assert_allclose(tensors["outputs"][0]["data"], wanted, rtol=1e-6)
    best = uploaded["predictions"][0]
    assert (best[0] if isinstance(best, list) else best)["label"] == str(int(wanted.argmax()))
    assert floats.status_code == 400
    assert "normalises itself" in floats.text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "either a run or --from"),
        (["--from", "digits.onnx"], 2, "Expected --data with --from"),
        (["--from", "digits.onnx", "--data", "digits", "--budget", "0.5"], 2, "--budget with a run only"),
        (["--from", "digits.onnx", "--data", "nosuch"], 2, "known data set"),
        (["--from", "digits.onnx", "--data", "digits", "--model", "tiny"], 2, "holds its network itself"),
        (["--from", "digits.onnx", "--data", "digits", "--channels", "BGR"], 2, "with --input uint8 only"),
        (["--from", "digits.onnx", "--data", "digits", "--input-size", "9"], 2, "is made for, (8, 8)"),
        (["--from", "digits.onnx", "--data", "digits", "--mean", "a"], 2, "--mean to be numbers"),
        (["--from", "digits.onnx", "--data", "digits", "--std", "1,2"], 2, "one per channel"),
        (["--from", "digits.pt", "--data", "digits"], 2, "the model that the weights"),
        (["--from", "missing.onnx", "--data", "digits"], 5, "there is nothing"),
        (["--from", "text.onnx", "--data", "digits"], 5, "damaged or of another kind"),
        (["--from", "digits.onnx", "--data", "seven"], 2, "7 classes, as the data has, but digits.onnx has 10"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_bundle(capsys, monkeypatch, tmp_path, foreign, words, code, message):
    monkeypatch.chdir(tmp_path)
    for name in ("digits.onnx", "digits.pt"):
        shutil.copy(foreign / name, name)
    Path("text.onnx").write_text("not a model")
    for split, count in (("train", 7), ("val", 7)):
        for index in range(count):
            folder = Path("seven", split, f"class{index}")
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(folder / "a.png")
    before = sorted(Path().iterdir())
    assert main(["export", *words]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(Path().iterdir()) == before


def test_a_bundle_alone_never_makes_a_command_import_code(typed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("my_nets.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('imported').touch()\n"
        "def small(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).state_dict(), "net.pt")
    words = ["--model", "my_nets:small", "--data", "digits", "--calibration-batches", 2]
    bundle = typed("export", "--from", "net.pt", *words)["bundle"]
    Path("imported").unlink()
    monkeypatch.delitem(sys.modules, "my_nets")
    report = typed("validate", bundle, "--data", "digits", "--limit", 20)
    assert all(runtime["name"] != "trained" for runtime in report["runtimes"])
    assert not Path("imported").exists()
    named = typed("validate", bundle, "--data", "digits", "--limit", 20, "--from", "net.pt", "--max-drop", 100)
    assert named["runtimes"][0]["name"] == "trained"
    assert Path("imported").exists()
