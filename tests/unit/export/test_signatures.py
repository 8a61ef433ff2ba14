"""Networks of several inputs and outputs, from preparing to onnxruntime: every integer, and the results."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from cpt_deploy import prepare
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate
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


def _same(wanted: Any, got: Any) -> bool:
    return wanted is got if wanted is None else torch.allclose(wanted, got, atol=1e-5)
