"""A trained network on other images, as a user goes it: its run's weights, a new head, a bundle, exact integers."""

import json

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.data import load_images


@pytest.fixture(scope="module")
def parity(workspace):
    """Digits again, as image files in two classes: even and odd."""
    for split, most in (("train", 200), ("test", 60)):
        images = load_images("digits", split=split)
        for index in range(most):
            name = ("even", "odd")[int(images.classes[images.labels[index]]) % 2]
            folder = workspace / "parity" / {"train": "train", "test": "val"}[split] / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.image(index))).save(folder / f"{index}.png")
    return workspace / "parity"


def test_a_run_is_fine_tuned_exported_and_validated(cpt, run_dir, parity):
    settings = (
        "digits-quickstart",
        "data.name=parity",
        "data.input.channels=1",
        "precision.cycles=2",
        "optimizer.lr=0.02",
    )
    words = ("train", *settings, f"model.weights={run_dir}", "--epochs", 2, "--out", "runs/parity")
    planned = cpt(*words, "--dry-run")
    assert "fc.weight and fc.bias newly initialised: the file has 10 classes" in " ".join(planned.stdout.split())
    report = json.loads(cpt(*words, "--json").stdout)["report"]
    assert report["classes"] == ["even", "odd"]
    assert report["model"]["weights"]["file"] == str(run_dir / "model.safetensors")
    cold = json.loads(cpt("train", *settings, "--epochs", 2, "--out", "runs/cold", "--json").stdout)["report"]
    assert report["test"]["loss"] < cold["test"]["loss"]
    bundle = json.loads(cpt("export", "runs/parity", "--json").stdout)["bundle"]
    validated = json.loads(cpt("validate", bundle, "--data", "parity", "--max-drop", 8, "--json").stdout)
    assert validated["integers"]["mismatching"] == 0 < validated["integers"]["compared"]
