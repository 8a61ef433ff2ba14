"""Causal language networks with states go through one path: prepare, freeze, execute, ONNX, for any sizes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import cpt_deploy
from cpt_deploy import IntegerExecutor, QuantizationConfig, calibrate
from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.errors import UsageError
from cpt_deploy.integer import freeze
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.integer.operations import Embed, FullyConnected
from cpt_deploy.models.language import TransformerLanguageModel
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.quantization import prepare as prepare_only
from cpt_deploy.quantization.conversion.comparison.running import float_bits
from cpt_deploy.validation.integers.compare_integers import compare_integers

VOCABULARY, CONTEXT, HEADS, FEATURES = 50, 64, 2, 16
SIZE = FEATURES // HEADS
#: Batch, present tokens, past tokens.
SIZES = ((1, 1, 0), (2, 5, 0), (4, 1, 9))


class Rotary(nn.Module):
    """A block as in Llama: RMSNorm, rotary positions, one head of keys and values for all queries, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(FEATURES) + 0.5)
        self.q, self.k, self.v = (nn.Linear(FEATURES, size, bias=False) for size in (FEATURES, SIZE, SIZE))
        self.gate, self.up = (nn.Linear(FEATURES, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, FEATURES, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        past = keys.shape[2]
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        q = self.turned(self.q(y).view(batch, length, HEADS, SIZE).transpose(1, 2), past)
        k = self.turned(self.k(y).view(batch, length, 1, SIZE).transpose(1, 2), past)
        keys = torch.cat([keys, k], 2)
        values = torch.cat([values, self.v(y).view(batch, length, 1, SIZE).transpose(1, 2)], 2)
        mask = torch.ones(length, past + length, dtype=torch.bool).tril(past)
        scores = (q @ keys.expand(-1, HEADS, -1, -1).transpose(2, 3)) / math.sqrt(SIZE)
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        x = x + (weights @ values).transpose(1, 2).reshape(batch, length, FEATURES)
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return x, keys, values

    @staticmethod
    def turned(x: Tensor, past: int) -> Tensor:
        angles = torch.arange(past, past + x.shape[2])[:, None] * 10.0 ** -torch.arange(SIZE // 2)
        sines, cosines = angles.sin(), angles.cos()
        one, other = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return torch.cat([one * cosines - other * sines, one * sines + other * cosines], -1)


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, FEATURES)
        self.layers = nn.ModuleList(Rotary() for _ in range(2))
        self.logits = nn.Linear(FEATURES, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x, after = self.tokens(input_ids), []
        for number, layer in enumerate(self.layers):
            x, *made = layer(x, *state[2 * number : 2 * number + 2])
            after += made
        return (self.logits(x), *after)


@dataclass
class Result:
    """A result as in transformers."""

    scores: Tensor
    past: tuple[tuple[Tensor, Tensor], ...]


class Gpt(nn.Module):
    """Learned positions, one Linear for queries, keys and values, GELU, an untied head; a dataclass as its result."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, FEATURES), nn.Embedding(CONTEXT, FEATURES)
        self.ln = nn.LayerNorm(FEATURES)
        self.attention, self.projection = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, FEATURES)
        self.mlp = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(approximate="tanh"), nn.Linear(32, FEATURES))
        self.lm_head = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, input_ids: Tensor, keys: Tensor, values: Tensor) -> Result:
        batch, length = input_ids.shape
        past = keys.shape[2]
        x = self.wte(input_ids) + self.wpe(torch.arange(past, past + length))
        q, k, v = self.attention(self.ln(x)).split(FEATURES, -1)
        q, k, v = (part.view(batch, length, HEADS, SIZE).transpose(1, 2) for part in (q, k, v))
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        mask = torch.ones(length, past + length, dtype=torch.bool).tril(past)
        y = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + self.projection(y.transpose(1, 2).reshape(batch, length, FEATURES))
        return Result(self.lm_head(x + self.mlp(self.ln(x))), ((keys, values),))


def built_in(**options: Any) -> nn.Module:
    return TransformerLanguageModel(
        VOCABULARY, features=FEATURES, layers=2, heads=HEADS, inner=24, context=CONTEXT, dropout=0.0, **options
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[str, int]]] = {
    "built-in": (built_in, 4, HEADS, ("output", 1)),
    "bands": (lambda: built_in(cutoffs=[10, 30]), 4, HEADS, ("output", 1)),
    "llama": (Llama, 4, 1, ("output", 1)),
    "gpt": (Gpt, 2, HEADS, ("past_0", 0)),
}


def inputs(count: int, heads: int, batch: int, length: int, past: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch + length + past)
    tokens = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    return tokens, *(torch.randn(batch, heads, past, SIZE, generator=generator) for _ in range(count))


def tensors(result: Any) -> list[Tensor]:
    return [result.scores, *result.past[0]] if isinstance(result, Result) else list(result)


@dataclass
class Case:
    """A network in all of its forms; `count` states of `heads` heads each."""

    network: nn.Module
    model: QuantizedModel
    graph: IntegerGraph
    file: bytes
    count: int
    heads: int

    def inputs(self, batch: int, length: int, past: int) -> tuple[Tensor, ...]:
        return inputs(self.count, self.heads, batch, length, past)

    def named(self, *sizes: int) -> dict[str, Tensor]:
        names = [tensor.name for tensor in self.graph.signature.inputs]
        return dict(zip(names, self.inputs(*sizes), strict=True))


@pytest.fixture(
    scope="module",
    params=[name if name == "gpt" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    make, count, heads, (prefix, first) = NETWORKS[request.param]
    network = make().eval()
    length, past = Dim("length", min=1, max=CONTEXT), Dim("past", min=0, max=CONTEXT)
    given = inputs(count, heads, 3, 7, 5)
    given[0][0, 0] = VOCABULARY - 1
    names = ["keys", "values"] if request.param == "gpt" else [f"state_{place}" for place in range(count)]
    prepare = cpt_deploy.prepare if request.param == "gpt" else prepare_only  # its trial is what the tests do
    model = prepare(
        network,
        given,
        QuantizationConfig(),
        dynamic_shapes=({1: length}, *({2: past} for _ in range(count))),
        states=[(name, f"{prefix}_{first + place}") for place, name in enumerate(names)],
    )
    for sizes in SIZES:
        tokens = inputs(count, heads, *sizes)
        with torch.no_grad(), float_bits(model):
            made, expected = tensors(model.eval()(*tokens)), tensors(network(*tokens))
        for got, want in zip(made, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    calibrate(model, [inputs(count, heads, 8, 12, past) for past in (0, 6)])
    graph = from_dict(*to_dict(freeze(model)))
    return Case(network, model, graph, write_onnx(graph), count, heads)


def test_the_signature_names_states_and_their_sizes(case: Case) -> None:
    signature = case.model.signature
    assert case.graph.signature == signature
    assert [before + "_after" for before, _ in signature.states] == [after for _, after in signature.states]
    assert len(signature.states) == case.count
    logits, *after = signature.outputs
    assert (logits.name, logits.shape) == ("logits", ("length", VOCABULARY))
    assert {tensor.shape for tensor in after} == {(case.heads, "length+past", SIZE)}
    assert (signature.free["past"].least, signature.free["length"].least, signature.context) == (0, 1, CONTEXT)


def test_the_frozen_network_is_the_prepared_one_and_onnxruntime_agrees(case: Case) -> None:
    executor = IntegerExecutor(case.graph)
    session = onnxruntime.InferenceSession(case.file, providers=["CPUExecutionProvider"])
    for sizes in SIZES:
        given = case.named(*sizes)
        with torch.no_grad():
            trained, executed = tensors(case.model.eval()(*given.values())), executor.run(given)
        made = session.run([*executed], {name: x.numpy() for name, x in given.items()})
        for own, (name, want), got in zip(trained, executed.items(), made, strict=True):
            assert got.shape == tuple(want.shape), name
            # a value that is rounded to another integer moves results by little
            np.testing.assert_allclose(got, want.numpy(), atol=0.02 * float(want.abs().max()))
            np.testing.assert_allclose(own.numpy(), want.numpy(), atol=0.02 * float(want.abs().max()))


@pytest.mark.parametrize("sizes", [(1, 1, 0), (3, 4, 5)])
def test_every_integer_is_onnxruntimes(case: Case, sizes: tuple[int, int, int]) -> None:
    found = compare_integers(case.graph, case.file, {name: x.numpy() for name, x in case.named(*sizes).items()})
    assert found.mismatches == 0
    assert not {*found.hidden} & {*case.graph.tensors}  # of layers between two, onnxruntime keeps no real values
    assert {tensor.name for tensor in found.free_running} == {*case.graph.tensors}
    assert max(found.outputs.values()) < 1e-5


def test_a_file_says_nothing_about_the_code_that_made_it(case: Case) -> None:
    nodes = onnx.load_model_from_string(case.file).graph.node
    assert not any(node.metadata_props or node.doc_string for node in nodes)
    assert b"torch" not in case.file


def test_a_step_runs_few_operators(case: Case) -> None:
    operators = optimized_operators(case.file)
    layers = sum(isinstance(operation, FullyConnected) for operation in case.graph.operations)
    assert operators["MatMulIntegerToFloat"] + operators.get("QLinearMatMul", 0) == layers
    assert operators.get("LayerNormalization", 0) == repr(case.graph.operations).count("aten.layer_norm.default")
    assert not {"Identity", "MatMulInteger"} & {*operators}
    if isinstance(case.network, TransformerLanguageModel):
        assert (operators["Shape"], "Expand" in operators) == (2, False)
        assert operators["FusedMatMul"] == 2


def test_a_text_in_parts_has_the_scores_of_the_whole(case: Case) -> None:
    model, whole = case.model.eval(), case.inputs(2, 6, 0)
    with torch.no_grad():
        expected = tensors(model(*whole))[0]
        state: Sequence[Tensor] = whole[1:]
        parts = []
        for tokens in torch.split(whole[0], [2, 1, 3], 1):
            scores, *state = tensors(model(tokens, *state))
            parts.append(scores)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_ends_are_fixed_and_shared_weights_have_the_same_integers(case: Case) -> None:
    network, model = case.network, case.model
    groups = {layer.name: layer.group for layer in model.layers()}
    if not isinstance(network, TransformerLanguageModel):
        assert [name for name, group in groups.items() if group == "fixed"] in (
            ["tokens", "logits"],
            ["wte", "wpe", "lm_head"],
        )
        return
    assert {name.partition(".")[0] for name, group in groups.items() if group == "fixed"} == {"embedding", "head"}
    assert {name.partition(".")[0] for name, group in groups.items() if group != "fixed"} == {"blocks"}
    native, model.precision.native = model.precision.native, True  # otherwise weights of products are limited
    weighted = {operation.source: operation for operation in freeze(model).weighted()}
    model.precision.native = native
    bands = "embedding.bands.0" in weighted
    one, other = ("embedding.bands.0", "head.softmax.head.tokens") if bands else ("embedding", "head.decoder")
    assert isinstance(weighted[one], Embed)
    assert isinstance(weighted[other], FullyConnected)
    assert model.network.get_submodule(one).weight is model.network.get_submodule(other).weight
    np.testing.assert_array_equal(weighted[one].codes, weighted[other].codes)
    np.testing.assert_array_equal(weighted[one].scales, weighted[other].scales)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([("cache", "output_1")], "states among the inputs input_ids, keys, values, but got 'cache'"),
        ([("input_ids", "past_0_0")], "states of float32, but 'input_ids'"),
        ([("keys", "past_0_0"), ("keys", "past_0_1")], "states with different names"),
        (["keys"], "states as pairs of names"),
    ],
)
def test_other_states_are_refused(states: Any, message: str) -> None:
    given = inputs(2, HEADS, 3, 7, 5)
    with pytest.raises(UsageError, match=message):
        cpt_deploy.prepare(Gpt(), given, QuantizationConfig(), states=states)
