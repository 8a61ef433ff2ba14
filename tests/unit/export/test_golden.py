"""The tolerance of a golden sample admits other processors, and no other network."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.export.golden import OtherRoundings, golden_sample, named_inputs
from cpt_deploy.integer import IntegerGraph, freeze
from cpt_deploy.integer.graph import from_dict, to_dict
from cpt_deploy.models.language import build_language_model, preparing_arguments
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare

TOKENS = torch.arange(48).reshape(4, 12) % 20


@pytest.fixture(scope="module", params=["lstm-lm", "transformer-lm"])
def graph(request: pytest.FixtureRequest) -> IntegerGraph:
    torch.manual_seed(0)
    sizes = {"embedding": 8, "hidden": 16} if request.param == "lstm-lm" else {"features": 16, "inner": 32, "heads": 2}
    network = build_language_model(request.param, 20, layers=1, dropout=0.0, **sizes)
    inputs, shapes, states = preparing_arguments(network, 20)
    model = prepare(network, inputs, QuantizationConfig(), dynamic_shapes=shapes, states=states)
    calibrate(model, [torch.randint(0, 20, (4, 12)) for _ in range(4)])
    return freeze(model.eval())


def test_other_roundings_are_within_and_other_weights_are_not(graph: IntegerGraph) -> None:
    inputs, file = named_inputs(graph.signature, TOKENS), write_onnx(graph)
    golden = golden_sample(graph, inputs, file)
    tolerance, logits = golden.tolerances["logits"], golden.outputs["logits"]
    assert 0 < tolerance < 0.02 * np.abs(logits).max()
    assert OnnxRuntimeModel(file, graph.signature, optimize=False).reproduce_golden(golden).reproduced
    others = (OtherRoundings(graph, seed).run(inputs)["logits"].numpy() for seed in range(100, 104))
    assert all(np.abs(other - logits).max() <= tolerance for other in others)
    description, arrays = to_dict(graph)
    for operation in graph.weighted():
        changed = dict(arrays)
        name = f"{operation.output}.scales"
        changed[name] = arrays[name] * np.float32(1.1)
        wrong = OnnxRuntimeModel(write_onnx(from_dict(description, changed)), graph.signature)
        assert not wrong.reproduce_golden(golden).reproduced, operation.source


class Masked(nn.Module):
    """Scores, of which a mask leaves some."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.second(self.norm(self.first(x))).cos()
        return scores.masked_fill(mask == 0, -1e9)[:, :3]


def test_a_mask_does_not_widen_the_tolerance() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1]])
    model = prepare(Masked().eval(), (torch.zeros(2, 8), mask), QuantizationConfig())
    calibrate(model, [(torch.randn(2, 8), mask) for _ in range(4)])
    graph = freeze(model.eval())
    inputs = named_inputs(graph.signature, {"x": torch.randn(2, 8), "mask": mask})
    golden = golden_sample(graph, inputs, write_onnx(graph))
    assert golden.outputs["logits"].min() == -1e9
    assert 0 < golden.tolerances["logits"] < 0.02
