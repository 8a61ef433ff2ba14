"""One edited value in an exported model.onnx, with checksums made to fit, stops `cpt validate` and is named."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cpt_cli.main import main

LAYER = "groups_0_0_conv1"


@pytest.fixture
def validate(workspace, monkeypatch, capsys, bundle_copy, run_dir):
    """Edit a constant of the bundle's copy and return what `cpt validate` says, and the bundle's report after it."""
    monkeypatch.chdir(workspace)

    def run(change, *words):
        model = onnx.load(bundle_copy / "model.onnx")
        change(model.graph, {initializer.name: initializer for initializer in model.graph.initializer})
        onnx.save(model, bundle_copy / "model.onnx")
        sums = (bundle_copy / "SHA256SUMS").read_text().splitlines()
        digest = hashlib.sha256((bundle_copy / "model.onnx").read_bytes()).hexdigest()
        fitted = [f"{digest}  model.onnx" if line.endswith("  model.onnx") else line for line in sums]
        (bundle_copy / "SHA256SUMS").write_text("\n".join(fitted) + "\n")
        assert main(["validate", str(bundle_copy), *words]) == 4
        error = capsys.readouterr().err
        assert f"'{LAYER}'" in error
        stored = bundle_copy / "validation.json"
        return error, json.loads(stored.read_text()) if words else None

    return run


def shift(name, amount):
    """Add to the first value of a constant."""

    def change(graph, constants):
        array = numpy_helper.to_array(constants[name]).copy()
        array.flat[0] += np.asarray(amount, array.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(array, name))

    return change


def move_zero_point(graph, constants):
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.uint8), "edited"))
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and LAYER in {node.input[0], node.output[0]}:
            node.input[2] = "edited"


EDITS = {
    "one weight code": (shift(f"{LAYER}.weight_codes", -1), "quantized weights"),
    "one weight scale": (shift(f"{LAYER}.weight_scales", 1e-5), "weight scales"),
    "one bias": (shift(f"{LAYER}.bias_codes", 200), "quantized biases"),
    "the scale of activations": (shift(f"{LAYER}.scale", 1e-3), "scale"),
    "the zero point of activations": (move_zero_point, "zero point"),
}


@pytest.mark.by_default("one weight code", "the zero point of activations")
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_value_fails_and_the_first_differing_tensor_is_named(validate, run_dir, edit):
    change, part = EDITS[edit]
    error, report = validate(change, "--data", "digits", "--limit", "100", "--run", str(run_dir), "--max-drop", "100")
    assert f"model.onnx is not what was exported: in tensor '{LAYER}'" in error
    assert (report["constants"]["differences"][0]["tensor"], report["constants"]["differences"][0]["part"]) == (
        LAYER,
        part,
    )
    assert not report["passed"]
    # Running it tells the same, independently: the executor computes from the integer graph.
    assert report["integers"]["first_difference"] == LAYER
    assert f"first in '{LAYER}'" in error


def test_a_value_that_no_data_exercises_is_found_without_running(validate):
    # The least change of a scale that float32 can hold leaves every code of the golden sample as it is.
    def change(graph, constants):
        name = f"{LAYER}.weight_scales"
        array = numpy_helper.to_array(constants[name]).copy()
        array[0] = np.nextafter(array[0], np.float32(1))
        constants[name].CopyFrom(numpy_helper.from_array(array, name))

    error, _ = validate(change)
    assert "1 of 16 weight scales differ" in error
    assert "golden" not in error
