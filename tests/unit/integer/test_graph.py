"""A graph survives being written as JSON and arrays."""

import json

import pytest
import torch

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.executor import fits_float32
from cpt_deploy.integer.graph import from_dict, to_dict
from cpt_deploy.integer.operations import Convolution
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    torch.manual_seed(0)
    network = build_model("mobilenetv2", num_classes=10, in_channels=3, input_size=(32, 32))
    prepared = prepare(network, torch.zeros(2, 3, 32, 32), QuantizationConfig())
    calibrate(prepared, [torch.randn(8, 3, 32, 32) for _ in range(2)])
    return prepared.eval()


def test_a_graph_survives_json_and_arrays(model: QuantizedModel) -> None:
    graph = freeze(model)
    description, arrays = to_dict(graph)
    again = from_dict(json.loads(json.dumps(description)), arrays)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(IntegerExecutor(again)(x), IntegerExecutor(graph)(x))
    assert again.tensors == graph.tensors


def test_logits_are_the_dequantized_codes_of_the_last_tensor(model: QuantizedModel) -> None:
    graph = freeze(model)
    executor = IntegerExecutor(graph)
    x = torch.randn(4, 3, 32, 32)
    output = graph.tensors[graph.outputs[0]]
    codes = executor.trace(x)[output.name]
    assert torch.equal(executor(x), (codes.float() - output.zero_point) * torch.tensor(output.scale))


def test_the_frozen_model_follows_the_trained_one() -> None:
    """They differ by rounding, which a deep network of random weights amplifies; hence a shallow one here."""
    torch.manual_seed(0)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    model = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig())
    calibrate(model, [torch.randn(32, 1, 8, 8) for _ in range(4)])
    graph, x = freeze(model.eval()), torch.randn(200, 1, 8, 8)
    with torch.no_grad():
        trained = model(x)
    codes = (IntegerExecutor(graph)(x) - trained).abs() / graph.tensors[graph.outputs[0]].scale
    assert codes.mean() < 0.5
    assert codes.max() < 8


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_weights_use_the_codes_of_their_bits(model: QuantizedModel, bits: int) -> None:
    graph = freeze(model, weight_bits=bits)
    held = {layer.name for layer in model.layers() if layer.group == "fixed"}
    for operation in graph.weighted():
        expected = 8 if operation.source in held else bits
        assert operation.bits == expected
        full = 2 ** (expected - 1) - 1
        least = 64 if expected == 8 else full  # codes of 8 bits leave out what could saturate in pairs
        assert least <= abs(operation.codes.astype(int)).max() <= full


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_cannot_be_exported_are_refused(model: QuantizedModel, bits: int) -> None:
    with pytest.raises(UsageError, match="bits"):
        freeze(model, weight_bits=bits)


def test_a_model_without_ranges_is_refused() -> None:
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    with pytest.raises(ConversionError, match="seen no data"):
        freeze(prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig()))


def test_layers_that_float32_cannot_sum_exactly_are_recognised(model: QuantizedModel) -> None:
    convolution = next(op for op in freeze(model).operations if isinstance(op, Convolution))
    source = freeze(model).tensors[convolution.inputs[0]]
    assert fits_float32(convolution, source)
    bias = convolution.bias.copy()
    bias[0] = 2**24
    wide = Convolution(**{f: getattr(convolution, f) for f in convolution.__dataclass_fields__} | {"bias": bias})
    assert not fits_float32(wide, source)
    assert isinstance(source, QuantizedTensor)
