"""The benchmark that runs exported files in other engines; each engine's part is skipped where it is not installed."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpt_deploy.bundle import Bundle, Golden, ImageProcessor, Preprocessing
from cpt_deploy.data import ArrayImages
from cpt_deploy.export import ModelIdentity, export_bundle
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NODE_MODULES = Path(os.environ.get("CPT_NODE_MODULES", "."))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("other_engines")
    for name in ("other_engines", "measuring"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def portable(tmp_path_factory) -> Bundle:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    model = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())
    calibrate(model, [torch.randn(16, 1, 8, 8) for _ in range(2)])
    processor = ImageProcessor(Preprocessing(1, (8, 8), mean=(0.5,), std=(0.5,)), tuple("0123456789"))
    identity = ModelIdentity("tiny", "tiny", "image-classification", processor)
    return export_bundle(model, tmp_path_factory.mktemp("export") / "bundle", identity, torch.randn(4, 1, 8, 8))


def steps_apart(logits: np.ndarray, golden: Golden) -> float:
    """The largest difference from golden logits, in quantization steps."""
    expected = golden.outputs["logits"][: len(logits)]
    return float(np.rint(np.abs(logits - expected) / golden.scales["logits"]).max())


def test_openvino_agrees_up_to_rounding_and_needs_no_vnni(script, portable):
    pytest.importorskip("openvino")
    engine = script.openvino_engine(portable.onnx_path)
    inputs = portable.golden.inputs["image"]
    assert steps_apart(engine.run(inputs), portable.golden) <= 2
    engine.timed(inputs)()
    assert script.changed_without_vnni(portable, engine, [inputs]) == {
        "differing_codes": 0.0, "worst_difference": 0, "other_labels": 0,
    }  # fmt: skip


def test_onnxruntime_web_agrees_up_to_the_rounding_of_sums(script, portable):
    if not script.web_installed(NODE_MODULES):
        pytest.skip("needs node, and CPT_NODE_MODULES naming a folder with onnxruntime-web")
    with script.web_engine(portable, NODE_MODULES) as engine:
        whole = portable.golden.inputs["image"]
        for inputs in (whole, whole[:1]):
            engine.timed(inputs)()
            assert steps_apart(engine.run(inputs), portable.golden) <= 1


def test_engines_that_are_not_installed_are_listed_as_such(script, portable, monkeypatch, tmp_path):
    images = ArrayImages("noise", "test", tuple("0123456789"), np.arange(6) % 10, np.zeros((6, 8, 8), np.uint8))
    monkeypatch.setattr(script, "load_images", lambda *_, **__: images)
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    results = script.measure(portable, "noise", 5, tmp_path, rounds=1)
    assert [(r["engine"], r["installed"]) for r in results] == [
        ("onnxruntime", True), ("OpenVINO", False), ("onnxruntime-web", False),
    ]  # fmt: skip
    assert (results[0]["samples"], results[0]["differing_codes"], results[0]["worst_difference"]) == (5, 0, 0)
    assert "pip install openvino" in script.row(results[1])[2]
    assert len({len(script.row(result)) for result in results} | {len(script.HEADER)}) == 1
