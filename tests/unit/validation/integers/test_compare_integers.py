"""A comparison of a graph with its file looks at the file as it is served, not only at one with more outputs."""

import math

import onnx
import pytest
import torch
from torch import nn

from cpt_deploy import QuantizationConfig, calibrate, export_onnx, prepare
from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.validation.integers import compare_integers as module


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda outputs: outputs, 0.0),
        (lambda outputs: outputs + abs(outputs).max(), 1.0),
        (lambda outputs: outputs[:, :1], math.inf),
    ],
    ids=["the same", "other values", "another shape"],
)
def test_outputs_that_only_the_served_file_has_are_found(tmp_path, monkeypatch, change, expected):
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    model = prepare(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), x, QuantizationConfig())
    calibrate(model, [x])
    graph = export_onnx(model.eval(), tmp_path / "net.onnx")

    class Served(OnnxRuntimeModel):
        def run(self, inputs):
            return {name: change(outputs) for name, outputs in super().run(inputs).items()}

    monkeypatch.setattr(module, "OnnxRuntimeModel", Served)
    (name,) = (tensor.name for tensor in graph.signature.inputs)
    (found,) = module.compare_integers(graph, tmp_path / "net.onnx", {name: x.numpy()}).outputs.values()
    assert found == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize(("written", "differs"), [("Sigmoid", False), ("HardSigmoid", True)])
def test_an_operator_in_float_with_another_meaning_is_found_in_the_codes_behind_it(tmp_path, written, differs):
    """The codes after these are exact: they are computed from those that onnxruntime had."""
    torch.manual_seed(0)
    x = torch.randn(6, 8)
    network = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Sigmoid(), nn.Linear(8, 4))
    model = prepare(network, x, QuantizationConfig())
    calibrate(model, [x])
    graph = export_onnx(model.eval(), tmp_path / "net.onnx")
    file = onnx.load(tmp_path / "net.onnx")
    (operator,) = (node for node in file.graph.node if node.op_type == "Sigmoid")
    operator.op_type = written
    (name,) = (tensor.name for tensor in graph.signature.inputs)
    found = module.compare_integers(graph, file.SerializeToString(), {name: x.numpy()})
    assert found.mismatches == 0
    assert [tensor.mismatches > 0 for tensor in found.boundaries] == [differs]
