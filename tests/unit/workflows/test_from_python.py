"""Workflows called from Python: they return data, tell a reporter, and print nothing, whatever the task."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest

from cpt_deploy.bundle import Bundle
from cpt_deploy.data import load_images
from cpt_deploy.data.text import load_corpus
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.workflows import (
    ExportOptions,
    FloatModel,
    ValidationOptions,
    check_bundle,
    describe_export,
    export_float_model,
    export_run,
    find_origin,
    image_classifier,
    sweep_run,
    validate_bundle,
)


class Recorder:
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.warnings, self.bars = [], [], {}

    def note(self, text):
        self.notes.append(text)

    def warning(self, text):
        self.warnings.append(text)

    @contextmanager
    def bar(self, description, total, *, start=0):
        self.bars[description] = [total]
        yield self
        self.bars[description].append("over")

    def advance(self, done, total=None, *, detail=""):
        list(self.bars.values())[-1].append(done)


@pytest.fixture(autouse=True)
def silence(capsys):
    """Nothing may have been printed at the end of a test."""
    yield
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def data_of(run):
    return load_recipe(run / "recipe.yaml").data.name


def test_a_run_becomes_a_bundle_that_passes(run, tmp_path):
    bundle = export_run(run, destination=tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").sha256 == bundle.sha256
    assert bundle.facts["weight_bits"] == bundle.facts["activation_bits"] == 8
    assert describe_export(bundle).reproduced
    assert check_bundle(bundle.path).passed
    evidence = validate_bundle(
        bundle.path, ValidationOptions(data_of(run), run=run, allow_undecided=True, require_exact=True)
    )
    assert evidence.passed
    assert not evidence.reasons
    assert evidence.content["integers"]["mismatching"] == 0 < evidence.content["integers"]["compared"]
    assert json.loads((bundle.path / "validation.json").read_text()) == json.loads(json.dumps(evidence.content))
    assert len(evidence.summary.table.rows[0]) == len(evidence.summary.table.columns)


def test_the_accuracy_that_is_reported_is_that_of_onnxruntime_counted_here(classifier, tmp_path):
    bundle = export_run(classifier, destination=tmp_path / "bundle")
    evidence = validate_bundle(bundle.path, ValidationOptions("digits", run=classifier, allow_undecided=True))
    session = onnxruntime.InferenceSession(bundle.onnx_path)
    images = load_images("digits", split="test")
    inputs = bundle.processor.inputs([images.image(index) for index in range(len(images))])
    (logits,) = session.run(None, inputs)
    found = {entry["name"]: entry["accuracy"] for entry in evidence.content["runtimes"]}
    assert found["onnxruntime"] == pytest.approx(np.mean(logits.argmax(1) == images.labels))
    recorded = json.loads((classifier / "report.json").read_text())["test"]["metrics"]["accuracy"]
    assert found["trained"] == pytest.approx(recorded, abs=0.01)


def test_a_text_is_predicted_in_sixteen_rows_that_each_begin_anew(language_model, corpus, tmp_path):
    bundle = export_run(language_model, destination=tmp_path / "bundle")
    evidence = validate_bundle(bundle.path, ValidationOptions(str(corpus), run=language_model, allow_undecided=True))
    words = load_corpus(str(corpus), None).text("test").split("\n")
    tokens = sum(len(line.split()) + 1 for line in words if line)
    assert evidence.content["dataset"]["samples"] == 16 * (tokens // 16 - 1)
    assert {entry["name"] for entry in evidence.content["runtimes"]} == {
        "trained",
        "executor",
        "onnxruntime",
        "onnxruntime-unoptimized",
    }


def test_a_reporter_hears_of_calibration_and_of_each_layer(run, tmp_path):
    heard = Recorder()
    bundle = export_run(run, ExportOptions(budget=0.9), destination=tmp_path / "bundle", reporter=heard)
    layers = bundle.facts["mixed_precision"]["layers"]
    total, *steps, over = heard.bars["measuring sensitivity"]
    assert (total, over) == (len(layers), "over")
    assert max(steps) == total
    assert any("bits by layer" in note for note in heard.notes)
    assert bundle.facts["mixed_precision"]["size_of_8_bits"] <= 0.9


def test_a_sweep_puts_exports_side_by_side_and_keeps_them(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    swept = sweep_run(copy, bits=[8, 6], rounds=2)
    exports = swept.content["exports"]
    assert [entry["weight_bits"] for entry in exports] == [8, 6]
    assert [entry["mismatching_integers"] for entry in exports] == [0, 0]
    assert len(swept.table.rows) == 2
    assert json.loads((swept.folder / "sweep.json").read_text())["exports"] == json.loads(json.dumps(exports))
    heard = Recorder()
    again = sweep_run(copy, bits=[8, 6], rounds=2, reporter=heard)
    assert [entry["reused"] for entry in again.content["exports"]] == [True, True]
    assert sum("already" in note for note in heard.notes) == 2


def test_bits_that_a_run_never_trained_at_are_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(UsageError, match="trained at"):
        export_run(run, ExportOptions(bits=2), destination=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_another_run_is_refused(run, tmp_path):
    bundle = export_run(run, destination=tmp_path / "bundle")
    other = shutil.copytree(run, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match="other trained weights"):
        validate_bundle(bundle.path, ValidationOptions(data_of(run), run=other))
    assert find_origin(bundle, run).run == run
    assert find_origin(bundle).run is None


def test_a_bundle_says_alone_that_it_cannot_saturate_unless_it_is_native(run, tmp_path):
    check = check_bundle(export_run(run, destination=tmp_path / "bundle").path)
    assert check.portability is not None
    assert "nothing can saturate" in check.portability
    native = check_bundle(export_run(run, ExportOptions(native=True), destination=tmp_path / "native").path)
    assert native.passed
    assert native.portability is None


def test_an_image_is_classified_as_onnxruntime_does(classifier, tmp_path):
    from PIL import Image

    bundle = export_run(classifier, destination=tmp_path / "bundle")
    images = load_images("digits", split="test")
    Image.fromarray(np.asarray(images.image(0))).save(tmp_path / "digit.png")
    best, second = image_classifier(bundle.path, top_k=2)(tmp_path / "digit.png")
    session = onnxruntime.InferenceSession(bundle.onnx_path)
    (logits,) = session.run(None, bundle.processor.inputs([images.image(0)]))
    order = np.argsort(-logits[0], kind="stable")
    assert [best.label, second.label] == [bundle.processor.labels[index] for index in order[:2]]


def test_a_float_model_from_elsewhere_is_calibrated(classifier, tmp_path):
    from cpt_deploy.export import write_float_onnx
    from cpt_deploy.training import load_run

    (tmp_path / "net.onnx").write_bytes(write_float_onnx(load_run(classifier).model))
    heard = Recorder()
    bundle = export_float_model(FloatModel(tmp_path / "net.onnx", "digits", batches=2), reporter=heard)
    assert bundle.path == tmp_path / "net-bundle-8bit"
    assert bundle.facts["calibration_images"] == 64
    assert find_origin(bundle).source == tmp_path / "net.onnx"
    assert any("calibrated on 64 training images" in note for note in heard.notes)
