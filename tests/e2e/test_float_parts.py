"""A vision transformer, whose attention and LayerNorm stay in float, from training to a prediction over HTTP."""

import json
import shutil
import urllib.request
from pathlib import Path

import pytest

from cpt_deploy.bundle import Bundle

pytestmark = pytest.mark.slow  # of networks with operators in float, units and bundles are tested by default

MODULE = """
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer


def build(num_classes, in_channels, input_size):
    network = VisionTransformer(input_size[0], 4, 1, 2, 16, 32, num_classes=num_classes)
    network.conv_proj = nn.Conv2d(in_channels, 16, 4, stride=4)
    return network
"""


@pytest.fixture(scope="module")
def transformer(cpt, workspace: Path) -> Path:
    """The bundle of a short run."""
    (workspace / "tiny_transformer.py").write_text(MODULE)
    settings = ("model.name=tiny_transformer:build", "optimizer.lr=0.05", "precision.cycles=1", "precision.min_bits=3")
    cpt("train", "digits-quickstart", *settings, "--epochs", 1, "--out", "runs/vit", "--quiet")
    done = cpt("export", "runs/vit", "--bits", 8, "--quiet")
    return workspace / done.stdout.strip()


def test_validation_follows_the_integers_and_says_what_is_in_float(cpt, transformer):
    report = json.loads(cpt("validate", transformer, "--data", "digits", "--max-drop", 5, "--json").stdout)
    assert report["passed"]
    assert report["integers"]["mismatching"] == 0
    assert report["integers"]["compared"] > 100_000
    assert {runtime["name"] for runtime in report["runtimes"]} >= {"trained", "executor", "onnxruntime"}
    assert report["float_parts"]["operators"]["layer_norm"] == 3
    assert 0.5 < report["float_parts"]["integer_share_of_macs"] < 1
    assert report["golden"]["tolerance"] > 0
    assert report["served_outputs"]["differing"] == 0
    assert report["graph"]["unannounced"] == {}
    assert "Computed in float" in (transformer / "validation.html").read_text()
    assert "| computed in float |" in (transformer / "README.md").read_text()
    assert "outputs (±" in cpt("validate", transformer, "--no-data").stdout


@pytest.mark.slow
def test_a_sweep_measures_each_width_and_times_the_float_network(cpt, transformer):
    run = transformer.parent
    document = json.loads(cpt("sweep", run, "--bits", "8,4", "--rounds", 2, "--limit", 60, "--json").stdout)
    wide, narrow = document["exports"]
    assert (wide["weight_bits"], narrow["weight_bits"]) == (8, 4)
    assert wide["mismatching_integers"] == narrow["mismatching_integers"] == 0 < narrow["compared_integers"]
    assert narrow["onnx_bytes"] < wide["onnx_bytes"] < document["float32"]["onnx_bytes"]
    report = json.loads((run / "sweep" / narrow["bundle"] / "validation.json").read_text())
    assert report["float_parts"]["operators"]["gelu"] == 1


FORMS = {"native": ["--native"], "symmetric": ["--activations", "symmetric"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_native_and_symmetric_bundles_are_exact_and_only_native_ones_can_saturate(cpt, transformer, digits, name):
    bundle = json.loads(cpt("export", transformer.parent, *FORMS[name], "--json").stdout)["bundle"]
    assert bundle.endswith(f"bundle-8bit-{name}")
    words = ("validate", bundle, "--data", "digits", "--require-exact", "--max-drop", 8, "--json")
    report = json.loads(cpt(*words).stdout)
    assert report["integers"]["mismatching"] == 0 < report["integers"]["compared"]
    assert report["saturation"]["possible_without_vnni"] == (name == "native")
    assert (report["portability"] is None) == (name == "native")
    assert "Gemm" not in report["graph"]["float_operators"]
    assert json.loads(cpt("predict", bundle, digits[0], "--json").stdout)["results"][0]["predictions"]


def test_it_is_served_and_predicts(start, ready, transformer, digits):
    process = start("serve", transformer, "--port", 0, "--json", "--require-evidence")
    try:
        url = json.loads(process.stdout.readline())["url"]
        ready(url, process)
        request = urllib.request.Request(f"{url}/predict", digits[0].read_bytes(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            predictions = json.load(answer)["predictions"]
        assert {entry["label"] for entry in predictions[0]} <= set(Bundle.open(transformer).processor.labels)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_server_refuses_other_logits_than_at_export(cpt, transformer, tmp_path):
    copy = Path(shutil.copytree(transformer, tmp_path / "copy"))
    (copy / "golden.safetensors").write_bytes(b"other")
    assert "golden.safetensors" in cpt("serve", copy, "--port", 0, code=5).stderr
