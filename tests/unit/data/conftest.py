import os
from pathlib import Path

import numpy as np
import pytest

from cpt_deploy.data import ArrayImages


@pytest.fixture
def no_data_folders(tmp_path, monkeypatch):
    """No environment variable and an empty cache; returns the cache's folder."""
    monkeypatch.delenv("CPT_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cpt-deploy"


@pytest.fixture
def array_images():
    """Makes random images in memory."""

    def make(count=50, size=(8, 8), channels=1, classes=10, seed=0, split="train"):
        generator = np.random.default_rng(seed)
        shape = (count, *size) if channels == 1 else (count, *size, 3)
        return ArrayImages(
            "random",
            split,
            tuple(str(label) for label in range(classes)),
            generator.integers(classes, size=count),
            generator.integers(256, size=shape, dtype=np.uint8),
        )

    return make


@pytest.fixture
def real_data():
    """Returns a folder of real data by its name, or skips the test."""

    def find(name):
        folder = Path(os.environ.get("CPT_DATA_DIR", "")) / name
        if "CPT_DATA_DIR" not in os.environ or not folder.is_dir():
            pytest.skip(f"needs the folder {name} in CPT_DATA_DIR")
        return folder

    return find
