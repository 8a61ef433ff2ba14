"""Networks of several inputs and outputs, from preparing to onnxruntime: every integer, and the results."""

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from cpt_deploy import prepare, quantization
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.export.programs import WRITERS, load_program
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, make_symmetric
from cpt_deploy.signature import size_at
from cpt_deploy.validation import compare_integers
from tests.unit.export.signature_networks import FIXED, FREE, Case

CASES = FIXED | FREE


def batch_of(model: QuantizedModel, case: Case, rows: int, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Return random inputs by the names of the model's arguments."""
    named = case.example if isinstance(case.example, dict) else {}
    inputs = {}
    for tensor, parameter in zip(model.signature.inputs, model.calling.parameters, strict=True):
        shape = (rows, *(size_at(size, sizes) for size in tensor.shape))
        if tensor.dtype == "float32":
            inputs[parameter] = torch.randn(shape)
        else:
            columns = named[parameter].amax(0) if parameter == "ids" else named[parameter].max()
            inputs[parameter] = (torch.rand(shape) * (columns + 1)).long()
    if "attention_mask" in inputs:
        inputs["attention_mask"][:, 0] = 1
    return inputs


def trained(case: Case) -> tuple[QuantizedModel, IntegerGraph]:
    """Return a model after three steps and its frozen graph, as it comes back from JSON and arrays."""
    torch.manual_seed(0)
    model = prepare(case.make(), case.example, QuantizationConfig(min_bits=4), dynamic_shapes=case.dynamic_shapes)
    assert (model.conversion.reason is None) == case.integers_only, model.conversion
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    for step in range(3):
        model.set_step(step)
        model.set_bits(4 + 2 * step, 8)
        result = model(**batch_of(model, case, 4, case.sizes[step % len(case.sizes)]))
        sum(leaf.square().mean() for leaf in tree_leaves(result) if leaf is not None).backward()
        optimizer.step()
        optimizer.zero_grad()
    calibrate(model, [batch_of(model, case, 4, sizes) for sizes in case.sizes])
    description, arrays = to_dict(freeze(model.eval()))
    return model, from_dict(json.loads(json.dumps(description)), arrays)


@pytest.mark.parametrize("name", list(CASES))
def test_every_integer_is_onnxruntimes_and_results_are_the_trained_networks(name: str) -> None:
    case = CASES[name]
    model, graph = trained(case)
    assert [tensor.name for tensor in graph.signature.inputs] == list(case.inputs)
    assert [tensor.name for tensor in graph.signature.outputs] == list(case.outputs)
    file, executor = write_onnx(graph), IntegerExecutor(graph)
    session = open_session(file)
    for rows, sizes in enumerate((*case.sizes, case.sizes[0]), start=1):
        inputs = batch_of(model, case, rows, sizes)
        named = dict(zip(case.inputs, inputs.values(), strict=True))
        arrays = {key: x.numpy() for key, x in named.items()}
        compared = compare_integers(graph, file, arrays)
        assert compared.mismatches == 0, [t for t in compared.tensors if t.mismatches]
        assert not (compared.hidden and case.integers_only)
        assert len(compared.tensors) >= len(graph.tensors) - len(graph.entries) - len(compared.hidden)
        assert max(compared.outputs.values()) < 1e-5
        with torch.no_grad():
            result, own = model(**inputs), executor.run(named)
        served = dict(zip(case.outputs, session.run(list(case.outputs), arrays), strict=True))
        leaves = [leaf for leaf in tree_leaves(result) if leaf is not None]
        for key, leaf in zip(case.outputs, leaves, strict=True):
            assert served[key].shape == leaf.shape == own[key].shape
            largest = float(leaf.abs().max())
            assert np.abs(served[key] - leaf.numpy()).max() < 0.03 * largest, key


@pytest.mark.parametrize("name", list(FIXED))
def test_a_prepared_model_is_called_as_the_network_and_returns_what_it_does(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    network = case.make().eval()
    model = prepare(network, case.example, QuantizationConfig(min_bits=32, max_bits=32)).eval()
    inputs = batch_of(model, case, 3, {})
    wanted, got = network(**inputs), model(**inputs)
    assert tree_structure(wanted) == tree_structure(got)
    assert type(wanted) is type(got)
    close = tree_map(_same, wanted, got)
    assert all(tree_leaves(close))


@pytest.mark.parametrize("name", ["siamese", "dictionary"])
def test_copies_and_pickles_are_called_alike(name: str) -> None:
    case = CASES[name]
    model = quantization.prepare(case.make(), case.example, QuantizationConfig())
    inputs = batch_of(model, case, 3, {})
    calibrate(model, [inputs])
    wanted = model.eval()(**inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(tree_leaves(tree_map(_same, wanted, twin(**inputs))))
        assert twin.signature == model.signature


@pytest.mark.parametrize("kind", WRITERS)
def test_a_program_takes_and_returns_several_tensors(kind: str) -> None:
    _, graph = trained(CASES["siamese"])
    program, executor = load_program(kind, WRITERS[kind](graph)), IntegerExecutor(graph)
    for rows in (1, 5):
        inputs = torch.randn(2, rows, 3, 16, 16)
        assert all(map(torch.equal, program(*inputs), executor(*inputs)))


def test_a_program_takes_images_of_any_size() -> None:
    sizes = {2: Dim("height", min=8), 3: Dim("width", min=8)}  # torch.export tells sizes of 1 behind strides apart
    _, graph = trained(replace(CASES["any size"], dynamic_shapes=sizes, sizes=({"height": 8, "width": 17},)))
    program, executor = load_program("pt2", WRITERS["pt2"](graph)), IntegerExecutor(graph)
    for rows, height, width in ((1, 8, 12), (3, 21, 9)):
        x = torch.randn(rows, 3, height, width)
        assert torch.equal(program(x), executor(x))


def test_symmetric_activations_of_several_inputs_are_exact() -> None:
    case = CASES["image and vector"]
    torch.manual_seed(0)
    model = quantization.prepare(case.make(), case.example, QuantizationConfig())
    make_symmetric(model)
    calibrate(model, [(torch.randn(4, 3, 16, 16), torch.randn(4, 5), torch.arange(4))])
    graph = freeze(model)
    inputs = {"photo": torch.randn(3, 3, 16, 16), "facts": torch.randn(3, 5)}
    arrays = {key: x.numpy() for key, x in inputs.items()}
    got = open_session(write_onnx(graph), optimize=False).run(None, arrays)[0]
    own = IntegerExecutor(graph).run(inputs)["logits"].numpy()
    assert np.abs(got - own).max() <= 2.5 * graph.tensors[graph.outputs[0]].scale


class Drawn(nn.Module):
    """Vectors and images, each through a layer or two, put together in some way; some of what is made is returned."""

    def __init__(self, images: list[bool], joins: list[str], deep: list[bool], returned: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2, 4, 3, 2, 1) if image else nn.Linear(5, 4),
                nn.ReLU(),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if image else nn.Identity(),
                nn.Linear(4, 4) if more else nn.Identity(),
            )
            for image, more in zip(images, deep, strict=True)
        )
        self.images, self.joins, self.returned = images, joins, returned
        self.after = nn.ModuleList(nn.Linear(8 if join == "cat" else 4, 4) for join in joins)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]
        x = made[0]
        for other, join, after in zip(made[1:], self.joins, self.after, strict=True):
            x = after(torch.cat((x, other), 1) if join == "cat" else x + other if join == "add" else x * other)
            made.append(x)
        return tuple(made[place % len(made)] for place in self.returned)


@settings(max_examples=10)
@given(st.data())
def test_any_graph_of_several_inputs_and_outputs_is_exact(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3))
    images, deep = (data.draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in range(2))
    joins = data.draw(st.lists(st.sampled_from(["cat", "add", "mul"]), min_size=count - 1, max_size=count - 1))
    returned = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    shapes = [(2, 6, 6) if image else (5,) for image in images]
    network = Drawn(images, joins, deep, returned)
    model = quantization.prepare(network, tuple(torch.zeros(2, *shape) for shape in shapes), QuantizationConfig())
    assert model.conversion.reason is None
    calibrate(model, [tuple(torch.randn(4, *shape) for shape in shapes)])
    graph = freeze(model)
    assert [tensor.name for tensor in graph.signature.inputs] == [f"inputs_{i}" for i in range(count)]
    arrays = {f"inputs_{i}": torch.randn(3, *shape).numpy() for i, shape in enumerate(shapes)}
    compared = compare_integers(graph, write_onnx(graph), arrays)
    assert compared.mismatches == 0
    assert max(compared.outputs.values()) == 0


def _same(wanted: Any, got: Any) -> bool:
    return wanted is got if wanted is None else torch.allclose(wanted, got, atol=1e-5)
