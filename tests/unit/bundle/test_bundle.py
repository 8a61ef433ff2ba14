import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError

FILES = (
    "model.onnx",
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "labels.txt",
    "quantization.json",
    "golden.safetensors",
    "train_recipe.yaml",
    "README.md",
)


def edit(bundle: Bundle, name: str, content: bytes) -> None:
    """Change a file and its checksum, as somebody would who rebuilds a bundle by hand."""
    (bundle.path / name).write_bytes(content)
    sums = bundle.path / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {name}")]
    sums.write_text("\n".join([*lines, f"{hashlib.sha256(content).hexdigest()}  {name}"]) + "\n")


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert caught.value.message.startswith("Expected")
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 5
    return caught.value


def test_open_returns_what_was_written(bundle, bundle_contents):
    contents = bundle_contents()
    opened = Bundle.open(str(bundle.path))
    assert (opened.name, opened.version, opened.task) == ("colours", "1", "image-classification")
    assert opened.processor == contents.processor
    assert opened.signature == contents.signature
    assert opened.facts["bits"] == 8
    assert opened.quantization == {**contents.quantization, "graph": contents.graph}
    assert opened.validation is None
    assert np.array_equal(opened.golden.outputs["logits"], contents.golden.outputs["logits"])
    assert np.array_equal(opened.golden.inputs["image"], contents.golden.inputs["image"])
    assert opened.golden.scales == {"logits": np.float32(contents.golden.scales["logits"])}
    assert opened.sha256 == hashlib.sha256(contents.onnx).hexdigest()
    assert opened.onnx_path.read_bytes() == contents.onnx
    tensors = opened.load_tensors()
    assert all(np.array_equal(tensors[name], value) for name, value in contents.tensors.items())


def test_checksums_agree_with_the_standard_tool(bundle):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle.path, check=True, capture_output=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing", "a directory"])
def test_damage_of_any_file_is_named(bundle, name, damage):
    path = bundle.path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "edited":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "a directory":
        path.mkdir()
    error = refusal(bundle.path)
    assert name in error.message
    assert "export" in str(error.hint)


def test_nothing_is_parsed_before_the_checksums_are_verified(bundle, monkeypatch):
    (bundle.path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("parsed a file of a damaged bundle"))
    assert "model.onnx" in refusal(bundle.path).message


def test_verification_can_be_left_out(bundle):
    (bundle.path / "README.md").write_text("edited")
    assert Bundle.open(bundle.path, verify=False).name == "colours"


@pytest.mark.parametrize(
    ("other", "advice"), [(2, "export again"), (4, "install that version")], ids=["older", "newer"]
)
def test_another_format_is_refused_with_advice(bundle, other, advice):
    config = json.loads((bundle.path / "config.json").read_text())
    config["cpt"]["format_version"] = other
    edit(bundle, "config.json", json.dumps(config).encode())
    error = refusal(bundle.path)
    assert f"version {other}" in error.message
    assert advice in str(error.hint)


@pytest.mark.parametrize(
    "config", [b"{}", b'{"cpt": {"format_version": "1"}}', b"[]", b"{", b'{"cpt":{"format_version":3}}']
)
def test_unfit_config_is_refused(bundle, config):
    edit(bundle, "config.json", config)
    assert "config.json" in refusal(bundle.path).message


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", "sub/model.onnx", "C:model", "a\\b"])
def test_paths_that_lead_out_are_refused(bundle, name):
    with (bundle.path / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    error = refusal(bundle.path)
    assert repr(name) in error.message
    assert "tampered" in str(error.hint)


@pytest.mark.parametrize("content", [b"no checksums", b"\xff\xfe", b""], ids=["text", "bytes", "empty"])
def test_unreadable_checksums_are_refused(bundle, content):
    (bundle.path / "SHA256SUMS").write_bytes(content)
    assert "SHA256SUMS" in refusal(bundle.path).message


def test_a_file_without_checksum_is_not_read(bundle):
    sums = bundle.path / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "model.onnx" not in line))
    assert "to list model.onnx" in refusal(bundle.path).message


def test_a_validation_report_put_there_by_hand_does_not_count(bundle):
    (bundle.path / "validation.json").write_text('{"passed": true}')
    assert Bundle.open(bundle.path).validation is None


def test_labels_have_to_fit_the_model(bundle):
    edit(bundle, "labels.txt", b"red\ngreen\n")
    assert "one for each label" in refusal(bundle.path).message


@pytest.mark.parametrize("name", ["golden.safetensors", "preprocessor_config.json", "quantization.json"])
def test_consistent_but_meaningless_files_are_refused(bundle, name):
    edit(bundle, name, b"[1]")
    refusal(bundle.path)


def test_meaningless_tensors_are_an_error_when_loaded(bundle):
    edit(bundle, "model.safetensors", b"[1]")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        Bundle.open(bundle.path).load_tensors()


def test_other_paths_say_what_they_are(bundle, tmp_path):
    assert "there is nothing" in refusal(tmp_path / "missing").message
    assert "it is a file" in refusal(bundle.path / "model.onnx").message
    (tmp_path / "empty").mkdir()
    assert "not a bundle" in refusal(tmp_path / "empty").message
    (bundle.path / "SHA256SUMS").unlink()
    assert "SHA256SUMS" in refusal(bundle.path).message


def test_a_run_directory_is_told_how_to_become_a_bundle(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    error = refusal(tmp_path)
    assert error.hint == f"export it first: cpt export {tmp_path}"


def test_opening_and_running_a_bundle_loads_no_torch(bundle):
    code = (
        "import sys; from cpt_deploy.bundle import Bundle, OnnxRuntimeModel\n"
        f"bundle = Bundle.open({str(bundle.path)!r})\n"
        "assert OnnxRuntimeModel(bundle.onnx_path).reproduce_golden(bundle.golden).reproduced\n"
        "assert not {'torch', 'onnx', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
