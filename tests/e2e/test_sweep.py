"""A family from one run: several widths, bits by layer, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from cpt_deploy.data import load_images


@pytest.fixture
def other_digits(tmp_path):
    """As many images as the test images of digits, the same ones upside down."""
    images = load_images("digits", split="test")
    np.savez(tmp_path / "test.npz", images=images.pixels[:, ::-1], labels=images.labels)
    (tmp_path / "classes.txt").write_text("\n".join(images.classes))
    return tmp_path


def test_a_sweep_measures_each_width_and_a_second_one_keeps_what_it_has(cpt, run_dir, other_digits):
    words = ("sweep", run_dir, "--bits", "8,3", "--act-bits", "8,same", "--rounds", 3, "--json")
    document = json.loads(cpt(*words).stdout)
    allocation = [(entry["weight_bits"], entry["activation_bits"]) for entry in document["exports"]]
    assert allocation == [(8, 8), (3, 8), (3, 3)]
    for entry in document["exports"]:
        assert entry["mismatching_integers"] == 0
        assert entry["compared_integers"] > 1_000_000
        assert entry["accuracy"] > 0.5
        assert not entry["reused"]
    sizes = [entry["weights_bytes"] for entry in document["exports"]]
    assert sizes[0] > sizes[1] == sizes[2]
    folder = run_dir / "sweep"
    assert {path.name for path in folder.iterdir()} == {
        "bundle-8bit", "bundle-3bit", "bundle-3bit-act3", "sweep.json", "sweep.md", "sweep.png",
    }  # fmt: skip
    assert json.loads((folder / "sweep.json").read_text())["exports"] == document["exports"]
    config = json.loads((folder / "bundle-3bit-act3" / "config.json").read_text())["cpt"]
    assert (config["weight_bits"], config["activation_bits"]) == (3, 3)
    shutil.rmtree(folder / "bundle-3bit")
    again = json.loads(cpt(*words).stdout)["exports"]
    assert [entry["reused"] for entry in again] == [True, False, True]
    assert [entry["accuracy"] for entry in again] == [entry["accuracy"] for entry in document["exports"]]
    # The evidence of other data, of as many images, is not that of the run's own.
    cpt("validate", folder / "bundle-3bit-act3", "--data", other_digits, "--run", run_dir, "--allow-undecided")
    last = json.loads(cpt(*words).stdout)["exports"]
    assert [entry["reused"] for entry in last] == [True, True, False]
    assert last[-1]["accuracy"] == document["exports"][-1]["accuracy"]


def test_a_budget_chooses_bits_by_layer_and_tells_them(cpt, run_dir, tmp_path):
    words = ("export", run_dir, "--budget", 0.6, "--out", tmp_path / "mixed")
    facts = json.loads(cpt(*words, "--json").stdout)["facts"]
    chosen = facts["mixed_precision"]
    assert 0.5 < chosen["size_of_8_bits"] <= 0.6
    quantization = json.loads((tmp_path / "mixed" / "quantization.json").read_text())
    bits = {entry["layer"]: entry["bits"] for entry in quantization["weights"]}
    assert {layer["layer"]: layer["bits"] for layer in chosen["layers"]}.items() <= bits.items()
    assert len(set(bits.values())) > 1
    assert "divergence of the outputs" in cpt(*words).stdout


def test_bits_of_a_family_that_do_not_fit_leave_nothing(cpt, run_dir, tmp_path):
    target = tmp_path / "bundle"
    export = ("export", run_dir, "--out", target)
    assert "3, 4, 5, 6, 7, 8" in cpt(*export, "--act-bits", 2, code=2).stderr
    assert "budget from 0." in cpt(*export, "--budget", 0.1, code=2).stderr
    assert "both" in cpt(*export, "--budget", 0.5, "--bits", 4, code=2).stderr
    assert not target.exists()
    before = sorted(run_dir.iterdir())
    assert "3, 4, 5, 6, 7, 8" in cpt("sweep", run_dir, "--bits", "8,2", code=2).stderr
    assert "--bits" in cpt("sweep", run_dir, "--bits", "8,x", code=2).stderr
    assert sorted(run_dir.iterdir()) == before
