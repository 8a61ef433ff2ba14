"""Random small networks: each converts to what it computes, to the last integer in onnxruntime, or is refused."""

import copy
import importlib
import os
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from torch import Tensor

from cpt_deploy.errors import ConversionError, CptWarning
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.quantization.conversion.comparison.equivalence import float_bits
from cpt_deploy.quantization.state.precision_state import Bits
from tests.unit.export.drawn_networks import SIDE, Drawn, networks

SHAPE = (3, SIDE, SIDE)


@pytest.fixture(scope="module")
def families() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        return importlib.import_module("model_families")


def results(network: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Return what a network computes in training and then in evaluation, from one random state."""
    found = []
    for training in (True, False):
        torch.manual_seed(7)
        with torch.no_grad():
            found.append(network.train(training)(x.clone()))
    return found


def assert_same_function(network: Drawn, prepared: QuantizedModel, x: Tensor) -> None:
    own = copy.deepcopy(prepared)
    with float_bits(own):
        got = results(own, x)
    for expected, other in zip(results(network, x), got, strict=True):
        assert torch.allclose(other, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def assert_close_at(model: QuantizedModel, x: Tensor, bits: int = 16) -> None:
    """Quantizers stand where values are, and round: at many bits they change little."""
    every = dict.fromkeys(model.precision.weight_bits, bits)
    with torch.no_grad(), float_bits(model):
        expected = model(x)
        model.precision.restore(Bits(every, every, 8, {}))
        got = model(x)
    assert float((got - expected).abs().max()) <= 0.1 * float(expected.abs().max())


@given(networks())
@settings(max_examples=300 if "CPT_EXPLORE" in os.environ else 12, suppress_health_check=list(HealthCheck))
def test_a_network_converts_to_what_it_computes_or_is_refused(families: ModuleType, network: Drawn) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CptWarning)
            model = prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    except ConversionError as error:
        event("refused")
        refused = error.message
    else:
        refused = None
    if refused is not None:
        assert "differ" in refused, refused  # a branch on `self.training`; nothing else that is drawn is refused
        return
    event(model.conversion.path)
    torch.manual_seed(1)
    assert_same_function(network, model, torch.randn(4, *SHAPE))
    x = torch.randn(8, *SHAPE)
    calibrate(model, [x])
    graph = freeze(model)
    assert families.count_differences(graph, write_onnx(graph), x).differing == 0
    assert_close_at(model.eval(), x)
