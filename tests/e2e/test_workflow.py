"""The whole path by the commands that a user types, and the ways in which it can be left."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_cli.main import main
from cpt_deploy import readable

CPT_FILES = {"recipe.yaml", "metrics.csv", "curves.png", "model.safetensors", "report.json"}


@pytest.fixture
def here(workspace, monkeypatch):
    """Work where the commands are typed, in this process."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("CPT_SERVE_DRAIN_S", "0")
    return workspace


def fails(capsys, code, *words):
    """Run a command line that must fail with a code, in one line and perhaps a hint; return what stderr holds."""
    assert main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in printed.err
    return printed.err


# The path


def test_training_reports_what_it_did_and_leaves_its_files(trained, run_dir):
    assert {path.name for path in run_dir.iterdir() if path.is_file()} >= CPT_FILES
    assert (run_dir / "checkpoints" / "last.safetensors").is_file()
    report = trained["report"]
    assert report["test"]["metrics"]["accuracy"] > 0.7
    assert 0.3 < report["cost"]["saving"] < 0.5  # 3-8 bits forward, 8 backward: 37 % of a long run
    assert trained["files_bytes"]["model.safetensors"] == (run_dir / "model.safetensors").stat().st_size


def test_a_finished_run_is_not_trained_again(here, capsys, run_dir):
    before = (run_dir / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert "finished already" in capsys.readouterr().err
    assert (run_dir / "model.safetensors").stat().st_mtime_ns == before


def test_validation_finds_the_run_and_every_integer_agrees(cpt, bundle):
    done = cpt("validate", bundle, "--data", "digits", "--max-drop", "2", "--json")
    report = json.loads(done.stdout)
    assert (report["passed"], report["verdict"]) == (True, "passed")
    assert -2 < report["non_inferiority"]["low"] <= 0 <= report["non_inferiority"]["high"] < 2  # points
    assert report["recorded"]["samples"] == 355
    assert report["served_outputs"] == {"values": 3550, "differing": 0, "worst": 0.0, "tolerance": None}
    assert report["trained_codes"]["values"] == 3550
    assert report["integers"]["compared"] > 1_000_000
    assert report["integers"]["mismatching"] == 0
    accuracies = {entry["name"]: entry["accuracy"] for entry in report["runtimes"]}
    assert set(accuracies) == {"trained", "executor", "onnxruntime", "onnxruntime-unoptimized"}
    assert accuracies["executor"] == accuracies["onnxruntime"]
    assert report["graph"]["float_operators"] == {}
    stored = json.loads((bundle / "validation.json").read_text())
    assert stored["integers"] == report["integers"]
    assert "model-index" in (bundle / "README.md").read_text()


def test_predictions_are_right_and_the_same_from_the_server(cpt, bundle, digits, server):
    local = json.loads(cpt("predict", bundle, *digits, "--json", "-k", 3).stdout)["results"]
    remote = json.loads(cpt("predict", bundle, *digits, "--json", "-k", 3, "--url", server).stdout)["results"]
    assert local == remote
    right = [entry["predictions"][0]["label"] == Path(entry["image"]).stem[-1] for entry in local]
    assert sum(right) >= 9


def test_the_server_answers_plain_http(server, digits):
    request = urllib.request.Request(
        f"{server}/predict?top_k=2", data=digits[0].read_bytes(), headers={"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert [len(image) for image in answer["predictions"]] == [2]
    for path in ("/health/live", "/health/ready", "/v2", f"/v2/models/{answer['model']}", "/docs", "/metrics"):
        with urllib.request.urlopen(server + path, timeout=30) as response:
            assert response.status == 200


def test_the_same_run_exports_at_fewer_bits(here, capsys, run_dir, tmp_path):
    five = str(tmp_path / "five")
    assert main(["export", str(run_dir), "--bits", "5", "--out", five]) == 0
    assert "calibrated BatchNorm statistics and activation ranges with weights at 5 bits" in capsys.readouterr().err
    words = ["--data", "digits", "--limit", "100", "--run", str(run_dir), "--max-drop", "10"]
    assert main(["validate", five, *words]) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.slow
def test_further_formats_are_exported_and_validated(here, capsys, run_dir, tmp_path):
    words = ["--format", "torchscript", "--format", "onnx,pt2"]
    assert main(["export", str(run_dir), "--bits", "4", "--out", str(tmp_path / "four"), *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["formats"] == ["onnx", "safetensors", "torchscript", "pt2"]
    assert printed["facts"]["opset"] == 21
    assert {"model.torchscript", "model.pt2"} <= set(printed["files_bytes"])
    words = ["--data", "digits", "--limit", "100", "--run", str(run_dir), "--max-drop", "10"]
    assert main(["validate", str(tmp_path / "four"), *words]) == 0
    shown = capsys.readouterr().out
    assert "outputs of model.torchscript    none differ from onnxruntime's" in shown
    assert "torch.export program" in shown
    report = json.loads((tmp_path / "four" / "validation.json").read_text())
    assert [entry["other_values"] for entry in report["comparisons"] if entry["first"] in {"torchscript", "pt2"}] == [
        0,
        0,
    ]


def test_the_opset_decides_whether_weights_are_packed(here, capsys, run_dir, tmp_path):
    sizes = []
    for opset in (17, 21):
        words = ["--bits", "3", "--out", str(tmp_path / "three"), "--opset", str(opset), "--json"]
        assert main(["export", str(run_dir), *words]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["files_bytes"]["model.onnx"])
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.slow
def test_an_export_cannot_saturate_and_says_what_that_takes_and_a_native_one_can(here, capsys, run_dir, tmp_path):
    portable = str(tmp_path / "portable")
    assert main(["export", str(run_dir), "--out", portable]) == 0
    assert "weights have a smaller range in" in capsys.readouterr().err
    assert main(["validate", portable, "--no-data"]) == 0
    assert "nothing can saturate (portable: smaller range in" in capsys.readouterr().out
    words = ["--data", "digits", "--run", str(run_dir), "--max-drop", "4", "--json"]
    assert main(["validate", portable, *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0
    assert report["saturation"]["possible_without_vnni"] is False
    assert {layer["layer"] for layer in report["portability"]["reduced"]} >= {"conv1", "fc"}
    assert report["drop"] == 0.0  # evaluation after training was in the same range already
    assert main(["export", str(run_dir), "--native"]) == 0
    assert "smaller range" not in capsys.readouterr().err
    native = str(run_dir / "bundle-8bit-native")
    assert main(["validate", native, *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0
    assert (report["portability"], report["saturation"]["possible_without_vnni"]) == (None, True)


# Bad input


def test_an_unknown_format_is_refused_before_anything_is_done(here, capsys, run_dir, tmp_path):
    error = fails(capsys, 2, "export", run_dir, "--format", "torchscipt", "--out", tmp_path / "bundle")
    assert "did you mean torchscript" in error
    assert not (tmp_path / "bundle").exists()


def test_bits_that_were_never_trained_are_refused_without_force(here, capsys, run_dir, tmp_path):
    error = fails(capsys, 2, "export", run_dir, "--bits", 2, "--out", tmp_path / "two")
    assert "(3, 4, 5, 6, 7, 8), but got 2" in error
    assert not (tmp_path / "two").exists()
    assert main(["export", str(run_dir), "--bits", "2", "--out", str(tmp_path / "two"), "--force"]) == 0


def test_a_run_directory_in_use_is_not_overwritten(here, capsys, run_dir):
    error = fails(capsys, 2, "train", "digits-quickstart", "--out", run_dir)
    assert f"cpt train --resume {readable.argument(run_dir)}" in error


def test_a_resumed_run_keeps_its_settings(here, capsys, run_dir):
    assert "train.epochs was 4, is 9" in fails(capsys, 2, "train", "--resume", run_dir, "--epochs", 9)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_weights_are_refused(here, capsys, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    truncate(copy / "model.safetensors")
    assert "it is damaged" in fails(capsys, 5, "export", copy)


def test_a_truncated_checkpoint_is_refused(here, capsys, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / "report.json").unlink()
    truncate(copy / "checkpoints" / "last.safetensors")
    assert "last.safetensors" in fails(capsys, 5, "train", "--resume", copy)
    assert "cpt train --resume" in fails(capsys, 5, "export", copy)


@pytest.mark.parametrize("damage", ["truncated", "edited", "missing", "newer"])
def test_a_damaged_bundle_is_refused_before_anything_is_loaded(here, capsys, bundle_copy, digits, damage):
    model, config = bundle_copy / "model.onnx", bundle_copy / "config.json"
    if damage == "truncated":
        truncate(model)
    elif damage == "edited":
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif damage == "missing":
        model.unlink()
    else:
        write_with_checksum(config, config.read_text().replace('"format_version": 3', '"format_version": 99'))
    named = "version 99" if damage == "newer" else "model.onnx"
    assert named in fails(capsys, 5, "predict", bundle_copy, digits[0])
    assert named in fails(capsys, 5, "validate", bundle_copy, "--data", "digits")
    assert named in fails(capsys, 5, "serve", bundle_copy, "--port", 0)


def write_with_checksum(path: Path, text: str) -> None:
    """Edit a file of a bundle as somebody would who corrects the checksums as well."""
    path.write_text(text)
    sums = path.with_name("SHA256SUMS")
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {path.name}")]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    sums.write_text("\n".join(sorted(lines)) + "\n")


def test_a_bundle_that_lost_accuracy_does_not_pass(here, capsys, run_dir, tmp_path):
    weak = tmp_path / "weak"
    assert main(["export", str(run_dir), "--bits", "2", "--out", str(weak), "--force", "--quiet"]) == 0
    capsys.readouterr()
    words = ["validate", weak, "--data", "digits", "--run", run_dir, "--max-drop", 0]
    code = main([str(word) for word in [*words, "--json"]])
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (code, report["verdict"]) == (4, "failed")
    assert "accuracy dropped by" in report["reasons"][0]
    assert report["integers"]["mismatching"] == 0


def test_few_samples_are_undecided_and_may_be_allowed(here, capsys, run_dir, bundle_copy):
    words = ["validate", bundle_copy, "--data", "digits", "--run", run_dir, "--limit", 40]
    assert main([str(word) for word in words]) == 4
    error = capsys.readouterr().err
    assert "cannot be decided from 40 images" in error
    assert "more images are needed" in error
    assert main([str(word) for word in [*words, "--allow-undecided", "--json"]]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["passed"]) == ("undecided", True)
    assert report["non_inferiority"]["more_samples"] > 700


def test_a_bundle_is_not_compared_with_another_run(here, capsys, bundle, run_dir, tmp_path):
    copy = Path(shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("bundle*")))
    (copy / "model.safetensors").write_bytes(b"other weights")
    error = fails(capsys, 2, "validate", bundle, "--data", "digits", "--run", copy)
    assert "other trained weights" in error


def test_a_data_set_of_other_classes_is_refused(here, capsys, bundle, tmp_path):
    assert "did you mean digits" in fails(capsys, 2, "validate", bundle, "--data", "digit")
    assert "nowhere" in fails(capsys, 5, "validate", bundle, "--data", tmp_path / "nowhere")


def test_a_port_in_use_is_one_line(here, capsys, bundle, server):
    port = server.rpartition(":")[2]
    error = fails(capsys, 2, "serve", bundle, "--port", port)
    assert f"127.0.0.1:{port}" in error
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "port" in fails(capsys, 2, "serve", bundle, "--port", other.getsockname()[1])


def test_the_server_survives_what_it_cannot_read(here, capsys, server, tmp_path, digits):
    text = tmp_path / "text.png"
    text.write_text("no image")
    assert "400" in fails(capsys, 5, "predict", "--url", server, text)
    request = urllib.request.Request(f"{server}/predict", data=b"{", headers={"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    with raised.value as response:
        assert response.code == 400
        assert "error" in json.load(response)
    assert main(["predict", "--url", server, str(digits[0]), "--quiet"]) == 0


def test_odd_images_do_not_bring_predict_down(here, capsys, bundle):
    folder = Path(os.environ.get("CPT_DATA_DIR", "")) / "odd-images"
    if "CPT_DATA_DIR" not in os.environ or not folder.is_dir():
        pytest.skip("needs the folder odd-images in CPT_DATA_DIR")
    images = sorted(path for path in folder.iterdir() if path.suffix != ".md")
    assert main(["predict", str(bundle), *map(str, images), "--json"]) == 5
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == len(images)
    assert sum("error" in result for result in results) < len(images) / 2


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let every larger file fail to be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_no_half_bundle(here, capsys, run_dir, bundle_copy, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle_copy.iterdir()}
    with files_of_at_most(8192):
        assert "temporary file of onnxruntime" in fails(capsys, 5, "export", run_dir, "--out", tmp_path / "new")
    with files_of_at_most(28_000):  # more than onnxruntime's own file, less than model.onnx
        new = fails(capsys, 5, "export", run_dir, "--out", tmp_path / "new")
        old = fails(capsys, 5, "export", run_dir, "--out", bundle_copy)
    assert "File too large" in new
    assert "nothing was changed" in old
    assert {path.name: path.read_bytes() for path in bundle_copy.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.by_default("ctrl-c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_is_saved_and_goes_on(cpt, start, tmp_path, number, code):
    out = tmp_path / "run"
    settings = ["train.epochs=6", "precision.cycles=2", "train.calibration_batches=2", "train.eval_every=null"]
    process = start("train", "digits-quickstart", *settings, "--out", out)
    assert process.stderr.readline().startswith("epoch 1/6")
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == code
    assert f"cpt train --resume {out}" in rest
    assert (out / "checkpoints" / "last.safetensors").is_file()
    if number == signal.SIGINT:
        done = cpt("train", "--resume", out)
        assert "going on from step" in done.stderr
        assert (out / "report.json").is_file()
