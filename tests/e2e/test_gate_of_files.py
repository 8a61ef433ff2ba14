"""Files of a bundle that were edited, with checksums made to fit: each stops `cpt validate`, and evidence is off."""

import hashlib
import json

import onnx
import pytest

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, require_evidence
from cpt_deploy.errors import ValidationFailedError


def refresh(path):
    names = [line.split("  ")[1] for line in (path / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(lines))


def in_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap_labels(path):
    labels = path.joinpath("labels.txt").read_text().splitlines()
    labels[3], labels[7] = labels[7], labels[3]
    path.joinpath("labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return labels


def swap_labels_everywhere(path):
    labels = swap_labels(path)
    names = {"label_names": labels, "id2label": {str(i): label for i, label in enumerate(labels)},
             "label2id": {label: i for i, label in enumerate(labels)}}  # fmt: skip
    in_json(path / "config.json", lambda content: content.update(names))


def brighten(path):
    in_json(path / "preprocessor_config.json", lambda content: content["cpt"].update(mean=[0.9], std=[0.1]))


def brighten_everywhere(path):
    new = {"mean": [0.9], "std": [0.1]}
    others = {"image_mean": [0.9], "image_std": [0.1]}
    in_json(path / "preprocessor_config.json", lambda content: (content["cpt"].update(new), content.update(others)))
    in_json(
        path / "config.json",
        lambda content: (content["pretrained_cfg"].update(new), content["cpt"]["inputs"].update(new)),
    )


def show_a_sum(path):
    """Make the real result of a convolution an output, which keeps it in float."""
    model = onnx.load(path / "model.onnx")
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][2]
    kind = onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(convolution.output[0], kind, None))
    onnx.save(model, path / "model.onnx")


def claim_to_be_portable(path):
    model = onnx.load(path / "model.onnx")
    model.metadata_props.add(key="cpt.portable", value="true")
    onnx.save(model, path / "model.onnx")


EDITS = {
    "mean and std": (brighten, "mean is [0.9] instead of", "accuracy dropped by"),
    "mean and std in each file": (brighten_everywhere, "mean is [0.9] instead of", "accuracy dropped by"),
    "two labels": (swap_labels, "labels.txt is not as in"),
    "two labels in each file": (swap_labels_everywhere, "labels.txt is not as in"),
    "an output": (show_a_sum, "computes 1 Conv in float, which was not announced at export"),
    "what needs no exact kernels": (claim_to_be_portable, "no sum can saturate on any processor"),
}


@pytest.mark.by_default("mean and std in each file", "two labels", "an output")
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_file_stops_the_gate_and_the_evidence(
    workspace, monkeypatch, capsys, bundle_copy, run_dir, tmp_path, edit
):
    monkeypatch.chdir(workspace)
    allowed = "2"
    if edit == "what needs no exact kernels":
        allowed = "5"  # the run was calibrated for portable weights, so a native bundle is not quite the trained model
        bundle_copy = tmp_path / "native"
        assert main(["export", str(run_dir), "--native", "--out", str(bundle_copy)]) == 0
    words = ["validate", str(bundle_copy), "--data", "digits", "--run", str(run_dir), "--max-drop", allowed]
    assert main(words) == 0
    require_evidence(Bundle.open(bundle_copy))
    change, *reasons = EDITS[edit]
    change(bundle_copy)
    refresh(bundle_copy)
    with pytest.raises(ValidationFailedError, match="was changed after the validation"):
        require_evidence(Bundle.open(bundle_copy))
    capsys.readouterr()
    assert main(words) == 4
    error = capsys.readouterr().err
    assert all(reason in error for reason in reasons)
    stored = json.loads((bundle_copy / "validation.json").read_text())
    assert (stored["passed"], stored["verdict"]) == (False, "failed")
    if "mean" in edit:
        assert {entry["name"]: entry["accuracy"] for entry in stored["runtimes"]}["trained"] > 0.8
    with pytest.raises(ValidationFailedError):
        require_evidence(Bundle.open(bundle_copy))


def test_without_the_run_the_recorded_accuracy_tells(workspace, monkeypatch, capsys, bundle_copy):
    monkeypatch.chdir(workspace)
    assert main(["validate", str(bundle_copy), "--data", "digits"]) == 0
    brighten_everywhere(bundle_copy)
    refresh(bundle_copy)
    capsys.readouterr()
    assert main(["validate", str(bundle_copy), "--data", "digits"]) == 4
    assert "the same 355 images" in capsys.readouterr().err


def test_a_run_whose_report_says_more_than_its_model_does_is_found(
    workspace, monkeypatch, capsys, bundle_copy, run_dir, tmp_path
):
    import shutil

    monkeypatch.chdir(workspace)
    copy = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("bundle*", "checkpoints"))
    in_json(
        copy / "report.json",
        lambda content: content["test"]["metrics"].update(accuracy=content["test"]["metrics"]["accuracy"] - 0.05),
    )
    words = ["validate", str(bundle_copy), "--data", "digits", "--run", str(copy), "--max-drop", "2"]
    assert main(words) == 4
    assert "by its own report" in capsys.readouterr().err
