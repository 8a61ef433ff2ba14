"""LSTM and GRU layers: prepared, frozen and written, against the float network and against onnxruntime."""

import functools
import json

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from cpt_deploy.bundle.runtime.operators import float_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.accumulators import can_saturate
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.integer.operations import Recurrent
from cpt_deploy.onnx_graph.float_network import write_float_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_native, prepare, reduced_layers
from cpt_deploy.quantization.calibration.symmetric import make_symmetric
from cpt_deploy.validation.integers.compare_integers import compare_integers

VOCABULARY = 30


class Net(nn.Module):
    """An embedding, recurrent layers with their state of (N, layers, H), and a Linear."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.rnn = kind(12, 16, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(32 if self.rnn.bidirectional else 16, VOCABULARY)

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.embedding(tokens)
        before = tuple(part.transpose(0, 1) for part in state)
        y, after = self.rnn(
            x if self.rnn.batch_first else x.transpose(0, 1),
            None if not before else before if len(before) > 1 else before[0],
        )
        after = after if isinstance(after, tuple) else (after,)
        return (self.head(y if self.rnn.batch_first else y.transpose(0, 1)), *(part.transpose(0, 1) for part in after))


def inputs(net: Net, rows: int = 3, length: int = 6, *, with_state: bool = True, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    parts = (2 if isinstance(net.rnn, nn.LSTM) else 1) if with_state else 0
    layers = net.rnn.num_layers * (2 if net.rnn.bidirectional else 1)
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    return (tokens, *(torch.randn(rows, layers, 16, generator=generator) for _ in range(parts)))


def prepared(net: Net, *, with_state: bool = True, config: QuantizationConfig | None = None) -> QuantizedModel:
    given = inputs(net, with_state=with_state)
    free = [{1: Dim("length", min=1, max=999)}, *[None] * (len(given) - 1)]
    return prepare(net, given, config or QuantizationConfig(min_bits=2), dynamic_shapes=free)


def frozen(model: QuantizedModel, net: Net, *, with_state: bool = True, **bits: int | None) -> IntegerGraph:
    calibrate(model, [inputs(net, with_state=with_state, seed=seed) for seed in range(3)], **bits)  # type: ignore[arg-type]
    description, arrays = to_dict(freeze(model.eval(), **bits))  # type: ignore[arg-type]
    return from_dict(json.loads(json.dumps(description)), arrays)


NETS: dict[str, tuple[type[nn.LSTM] | type[nn.GRU], dict[str, object], bool]] = {
    "lstm": (nn.LSTM, {"batch_first": True}, True),
    "gru": (nn.GRU, {"batch_first": True}, True),
    "lstm without state or bias": (nn.LSTM, {"bias": False}, False),
    "deep lstm both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}, True),
    "deep gru both ways": (
        nn.GRU,
        {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "batch_first": True},
        False,
    ),
}


@functools.cache
def network(name: str) -> tuple[Net, QuantizedModel, bool]:
    kind, options, with_state = NETS[name]
    torch.manual_seed(0)
    net = Net(kind, **options)
    return net, prepared(net, with_state=with_state), with_state


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 5}], ids=["8 bits", "fewer"])
@pytest.mark.parametrize("name", NETS)
def test_every_integer_is_onnxruntimes(name: str, bits: dict[str, int | None]) -> None:
    net, model, with_state = network(name)
    graph = frozen(model, net, with_state=with_state, **bits)
    file = write_onnx(graph)
    for rows, length in ((2, 9), (1, 1)):
        given = inputs(net, rows, length, with_state=with_state, seed=9)
        named = {tensor.name: x.numpy() for tensor, x in zip(graph.signature.inputs, given, strict=True)}
        comparison = compare_integers(graph, file, named)
        assert comparison.mismatches == 0
        assert not comparison.hidden
        layers = net.rnn.num_layers * (2 if net.rnn.bidirectional else 1)
        steps = [tensor for tensor in comparison.tensors if tensor.operator == "MatMulInteger"]
        assert [tensor.values for tensor in steps] == [rows * length * len(graph_steps(graph)[0].codes)] * layers
        assert max(comparison.outputs.values()) < 1e-6
        states = [t for t in comparison.free_running if t.name in {step.hidden for step in graph_steps(graph)}]
        assert [tensor.values for tensor in states] == [rows * length * 16] * layers
        assert all(tensor.worst_difference <= 1 for tensor in comparison.free_running)
        with torch.no_grad(), model.at_max_bits(**bits):
            expected, executed = model(*given), IntegerExecutor(graph)(*given)
        for wanted, got in zip(expected, executed, strict=True):
            assert torch.allclose(wanted, got, atol=0.02 * float(wanted.abs().max()))
    assert not {"LSTM", "GRU", "MatMul", "Gemm"} & set(float_operators(file))


def graph_steps(graph: IntegerGraph) -> list[Recurrent]:
    return [operation for operation in graph.operations if isinstance(operation, Recurrent)]


@pytest.mark.parametrize("name", NETS)
def test_the_float_file_computes_what_the_float_network_does(name: str) -> None:
    net, _, with_state = network(name)
    model = prepared(net, with_state=with_state)  # calibrating the other one has rounded its biases
    session = open_session(write_float_onnx(model))
    for rows, length in ((2, 9), (1, 1)):
        given = inputs(net, rows, length, with_state=with_state, seed=9)
        feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), given, strict=True)}
        with torch.no_grad():
            expected = net.eval()(*given)
        for wanted, got in zip(expected, session.run(None, feed), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


def test_a_wrong_weight_in_the_body_is_found() -> None:
    net = Net(nn.LSTM, batch_first=True)
    graph = frozen(prepared(net), net)
    model = onnx.load_from_string(write_onnx(graph))
    body = next(node for node in model.graph.node if node.op_type == "Scan").attribute[0].g
    weight = next(entry for entry in body.initializer if ".weight" in entry.name)
    codes = onnx.numpy_helper.to_array(weight).copy()
    codes[3, 5] += 1 if codes[3, 5] < 127 else -1
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, weight.name))
    named = {t.name: x.numpy() for t, x in zip(graph.signature.inputs, inputs(net, 4, 8), strict=True)}
    (wrong,) = (t for t in compare_integers(graph, model.SerializeToString(), named).tensors if t.mismatches)
    assert wrong.name == graph_steps(graph)[0].product


def test_steps_are_the_whole() -> None:
    net = Net(nn.GRU, num_layers=2)
    session = open_session(write_onnx(frozen(prepared(net), net)))
    names = [entry.name for entry in session.get_inputs()]
    tokens, h = (x.numpy() for x in inputs(net, 2, 12))
    whole, end = session.run(None, {names[0]: tokens, names[1]: h})
    parts = []
    for part in np.split(tokens, [1, 2, 7], axis=1):
        logits, h = session.run(None, {names[0]: part, names[1]: h})
        parts.append(logits)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(h, end)


def test_biases_that_are_all_equal_are_compared_and_joined() -> None:
    net = Net(nn.LSTM)
    nn.init.zeros_(net.rnn.bias_hh_l0)
    net.rnn.bias_ih_l0.data.fill_(1.0)
    model = prepared(net)
    names = [name for name, _ in model.named_parameters() if "bias" in name]
    assert names == ["network.rnn.input_layer.bias", "network.head.bias"]
    assert torch.equal(model.get_parameter(names[0]), torch.ones(64))


def test_sums_native_and_symmetric_models_know_the_products() -> None:
    net = Net(nn.LSTM)
    with torch.no_grad():
        for name, parameter in net.rnn.named_parameters():
            if name == "weight_hh_l0":
                parameter[:, :2] = 1.0  # two equal greatest weights can saturate
    model = prepared(net)
    assert [info.name for info in model.layers()] == ["embedding", "rnn.input_layer", "rnn.hidden_layer", "head"]
    assert [info.macs for info in model.layers()] == [0, 6 * 64 * 12, 6 * 64 * 16, 6 * 16 * VOCABULARY]
    assert "rnn.hidden_layer" in [layer.layer for layer in reduced_layers(model)]
    assert not can_saturate(frozen(model, net))
    make_native(model)
    assert can_saturate(frozen(model, net))
    make_symmetric(model)
    graph = frozen(model, net)
    assert graph.tensors[graph_steps(graph)[0].hidden].signed
    named = {t.name: x.numpy() for t, x in zip(graph.signature.inputs, inputs(net), strict=True)}
    assert compare_integers(graph, write_onnx(graph), named).mismatches == 0


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_layers_without_a_quantized_form_are_refused_by_name() -> None:
    net = Net(nn.LSTM, batch_first=True, proj_size=4)
    net.head = nn.Linear(4, VOCABULARY)
    with pytest.raises(ConversionError, match="proj_size is 4, in module 'rnn'"):
        prepare(net, inputs(net, with_state=False), QuantizationConfig())

    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(12, 16)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.rnn(x)[0]
            return result

    with pytest.raises(ConversionError, match=r"batches of sequences.*in module 'rnn'"):
        prepare(Unbatched(), torch.zeros(3, 12), QuantizationConfig())


def test_parts_of_a_batch_have_the_noise_of_the_whole() -> None:
    net = Net(nn.GRU, batch_first=True)
    model = prepared(net).train()
    layer = model.network.get_submodule("rnn")
    gradient = torch.linspace(-1, 1, 2 * 48).view(2, 48).repeat(2, 1)  # both halves have the range of the whole

    def rounded(rows: slice, first: int) -> Tensor:
        model.set_step(3, first)
        gates = torch.zeros(4, 48)[rows].requires_grad_()
        layer._with_quantized_gradient(gates, 2, 1).backward(gradient[rows])
        assert gates.grad is not None
        return gates.grad

    whole = rounded(slice(0, 4), 0)
    assert torch.equal(rounded(slice(2, 4), 2), whole[2:])
    assert not torch.equal(whole[:2], whole[2:])
