"""Bundles of models that were prepared in Python: a regression of two inputs, and a classifier."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import nn

import cpt_deploy as cpt
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.errors import BundleError, UsageError

TASK = "tabular-regression"


class Price(nn.Module):
    """Price and rating from numbers and a category."""

    def __init__(self):
        super().__init__()
        self.places, self.numbers = nn.Embedding(6, 8), nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.head = nn.Linear(24, 1)

    def forward(self, numbers, place):
        return self.head(torch.cat((self.numbers(numbers), self.places(place)), 1))


def batch(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "numbers": torch.randn(rows, 4, generator=generator),
        "place": torch.randint(0, 6, (rows,), generator=generator),
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = cpt.prepare(Price(), batch(2), cpt.QuantizationConfig(min_bits=4, max_bits=8))
    cpt.calibrate(model, [batch(64, seed) for seed in range(4)])
    return model.eval()


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    processor = cpt.TensorProcessor({"numbers": ("rooms", "age", "area", "floor")}, {"logits": "EUR"})
    path = tmp_path_factory.mktemp("prices") / "prices"
    return cpt.export_bundle(model, path, batch(5, 9), task=TASK, processor=processor)


def test_the_bundle_has_the_signature_and_is_the_models(model, bundle):
    assert (bundle.name, bundle.task, bundle.signature) == ("prices", TASK, model.signature)
    assert [tensor.name for tensor in bundle.signature.inputs] == ["numbers", "place"]
    inputs = batch(40, 3)
    session = onnxruntime.InferenceSession(bundle.onnx_path)
    (served,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        expected = model(**inputs).numpy()
    assert np.abs(served - expected).max() < 0.02 * np.abs(expected).max()
    assert contradictions(bundle) == []


def test_onnxruntime_reproduces_the_golden_sample_and_nothing_else_does(bundle):
    from cpt_deploy.bundle import OnnxRuntimeModel, compare_golden

    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    check = runtime.reproduce_golden(bundle.golden)
    assert (check.reproduced, check.values) == (True, 5)
    others = runtime.run({name: x.numpy() for name, x in batch(5, 10).items()})
    assert not compare_golden(bundle.golden, others).reproduced


def test_values_of_json_are_inputs_and_outputs_are_values(bundle):
    from cpt_deploy.bundle import OnnxRuntimeModel

    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    row = {"age": 2.0, "rooms": 1, "area": 3.5, "floor": -1}
    request = json.loads(json.dumps({"numbers": [row, [1, 2, 3.5, -1]], "place": [3, 3]}))
    inputs = bundle.processor.inputs(request, bundle.signature)
    assert {name: (array.dtype.name, array.shape) for name, array in inputs.items()} == {
        "numbers": ("float32", (2, 4)), "place": ("int64", (2,)),
    }  # fmt: skip
    first, second = bundle.processor.answers(runtime.run(inputs))
    assert first == second == {"logits": pytest.approx(float(runtime.run(inputs)["logits"][0, 0]))}


def test_it_is_read_without_torch_and_without_a_package_of_its_task(bundle):
    code = (
        "import sys; from cpt_deploy.bundle import Bundle, OnnxRuntimeModel\n"
        f"bundle = Bundle.open({str(bundle.path)!r})\n"
        "assert OnnxRuntimeModel(bundle.onnx_path, bundle.signature).reproduce_golden(bundle.golden).reproduced\n"
        "assert bundle.processor.units == {'logits': 'EUR'}\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_card_has_the_task_and_all_tensors(bundle):
    text = (bundle.path / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == TASK
    for line in (
        "| input | `numbers`, float32 (N, 4) |",
        "| input | `place`, int64 (N) |",
        "| output | `logits`, float32 (N, 1) |",
        "| features of numbers | rooms, age, area, floor |",
        "| unit of logits | EUR |",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", lambda own: own["cpt"].update(features={"numbers": ["a"]}), "a different feature"),
        ("config.json", lambda own: own["cpt"].update(units={"price": "EUR"}), "units of logits"),
        ("config.json", lambda own: own["cpt"].pop("features"), "features and units"),
        ("config.json", lambda own: own["cpt"].pop("signature"), "signature"),
        ("config.json", lambda own: own["cpt"]["signature"]["inputs"].pop(), "the inputs numbers"),
        ("config.json", lambda own: own["cpt"]["signature"]["outputs"][0].update(shape=[2]), "golden outputs"),
        ("config.json", lambda own: own["cpt"].update(processor="PriceProcessor"), "PriceProcessor"),
        ("config.json", lambda own: own["cpt"].pop("task"), "name, version and task"),
        ("config.json", lambda own: own["cpt"].update(task="text-generation"), "the TextProcessor of the task"),
    ],
)  # fmt: skip
def test_unfit_parts_are_refused_though_checksums_hold(bundle, tmp_path, name, change, reason):
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))
    sums = (path / "SHA256SUMS").read_text()
    digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "SHA256SUMS").write_text(sums.replace(bundle.digests[name], digest))
    with pytest.raises(BundleError, match=reason):
        cpt.Bundle.open(path)


@pytest.mark.parametrize("name", ["golden.safetensors", "model.onnx", "config.json", "quantization.json", "README.md"])
def test_damage_is_named(bundle, tmp_path, name):
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=name):
        cpt.Bundle.open(path)


def test_a_signature_that_is_not_the_graphs_is_a_contradiction(bundle, tmp_path):
    from dataclasses import replace

    changed = {**bundle.quantization["graph"], "signature": {**bundle.facts["signature"], "states": [["a", "b"]]}}
    (found,) = contradictions(replace(bundle, quantization={**bundle.quantization, "graph": changed}))
    assert found == "the signature in config.json is not that of the graph in quantization.json"


def test_inputs_of_integers_are_not_guessed(model, tmp_path):
    with pytest.raises(UsageError, match="golden_inputs for the input place of int64"):
        cpt.export_bundle(model, tmp_path / "b", task=TASK)


@pytest.mark.parametrize(
    ("golden", "reason"),
    [(torch.zeros(2, 4), "numbers, place by name"), ({"numbers": torch.zeros(2, 4)}, "inputs numbers, place"),
     ({"numbers": torch.zeros(2, 3), "place": torch.zeros(2).long()}, r"float32 \(N, 4\)"),
     ({"numbers": torch.zeros(2, 4), "place": torch.zeros(3).long()}, "where N is 2")],
    ids=["one", "missing", "width", "rows"],
)  # fmt: skip
def test_golden_inputs_have_to_fit(model, tmp_path, golden, reason):
    with pytest.raises(BundleError, match=reason):
        cpt.export_bundle(model, tmp_path / "b", golden, task=TASK)
    assert not (tmp_path / "b").exists()


def test_further_formats_take_the_inputs_in_order(model, bundle, tmp_path):
    exported = cpt.export_bundle(model, tmp_path / "b", batch(5, 9), task=TASK, formats=("pt2",))
    program = torch.export.load(exported.path / "model.pt2").module()
    made = program(*(torch.from_numpy(bundle.golden.inputs[name]) for name in ("numbers", "place")))
    assert np.abs(made.numpy() - bundle.golden.outputs["logits"]).max() <= bundle.golden.tolerance


def test_a_classifier_needs_no_golden_inputs_and_takes_a_processor(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    model = cpt.prepare(network, torch.zeros(2, 3, 8, 8), cpt.QuantizationConfig())
    cpt.calibrate(model, [torch.randn(8, 3, 8, 8)])
    preprocessing = cpt.Preprocessing(3, (8, 8), (0.5,) * 3, (0.5,) * 3)
    processor = cpt.ImageProcessor(preprocessing, ("cat", "dog"))
    bundle = cpt.export_bundle(model, tmp_path / "b", task="image-classification", processor=processor, name="pets")
    assert (bundle.name, bundle.processor) == ("pets", processor)
    assert bundle.golden.inputs["image"].shape == (4, 3, 8, 8)
    assert bundle.golden.scales.keys() == {"logits"}
    with pytest.raises(BundleError, match="the ImageProcessor of the task"):
        cpt.export_bundle(model, tmp_path / "c", task="image-classification")
    three = cpt.ImageProcessor(preprocessing, ("cat", "dog", "cow"))
    with pytest.raises(BundleError, match="one for each label"):
        cpt.export_bundle(model, tmp_path / "c", task="image-classification", processor=three)
    assert not (tmp_path / "c").exists()


def test_large_golden_samples_are_cut_to_their_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("cpt_deploy.export.golden._KEPT_VALUES", 100)
    torch.manual_seed(0)
    model = cpt.prepare(nn.Sequential(nn.Linear(4, 30)), torch.zeros(2, 4), cpt.QuantizationConfig())
    cpt.calibrate(model, [torch.randn(8, 4)])
    bundle = cpt.export_bundle(model, tmp_path / "b", torch.randn(9, 4), task=TASK)
    (given,), (made,) = bundle.golden.inputs.values(), bundle.golden.outputs.values()
    assert (given.shape, made.shape) == ((3, 4), (3, 30))
