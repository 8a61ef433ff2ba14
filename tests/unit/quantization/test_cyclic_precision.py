"""The schedule of one's own training loop: the bits of the published formula, and a training that is gone on with."""

import doctest
import importlib
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cpt_deploy import CyclicPrecision, IntegerExecutor, QuantizationConfig, calibrate, export_onnx, prepare
from cpt_deploy.errors import CptWarning, UsageError
from cpt_deploy.precision import DelayedSchedule, StaticSchedule
from cpt_deploy.quantization import LayerGroup

SHAPE = (2, 6, 6)


def small(**settings):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    return prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig(**settings)).train()


def steps(model, schedule, optimizer, count, first=0):
    """Train on batches that depend on their number alone; yield the losses."""
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        x, y = torch.randn(8, *SHAPE, generator=generator), torch.randint(3, (8,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


@pytest.mark.parametrize(("total", "cycles"), [(64, 8), (50, 3), (32, 32)])
def test_bits_are_those_of_the_paper(total, cycles):
    model = small(min_bits=3, max_bits=8)
    schedule = CyclicPrecision(model, total, cycles)
    for step in range(total):
        z = (step * cycles) % total / total
        assert schedule.get_last_bits() == round(3 + 2.5 * (1 - math.cos(math.pi * z)))
        assert model.precision.weight_bits["scheduled"] == schedule.get_last_bits()
        assert model.precision.step == step
        schedule.step()
    assert schedule.get_last_bits() == model.precision.weight_bits["scheduled"] == 8
    with pytest.raises(UsageError, match=f"at most {total} steps"):
        schedule.step()


def test_another_schedule_and_other_bits_of_gradients():
    model = small(min_bits=4, max_bits=6)
    schedule = CyclicPrecision(model, 4, 1, schedule="linear", gradient_bits=6)
    assert (schedule.get_last_bits(), model.precision.gradient_bits) == (4, 6)
    with pytest.raises(UsageError, match="one precision cycle per step"):
        CyclicPrecision(model, 4, 5)


def test_a_schedule_that_follows_the_loss_is_refused():
    with pytest.raises(UsageError, match="follows the training loss"):
        CyclicPrecision(small(), 100, schedule="progressive")


def test_a_training_that_is_gone_on_with_is_the_same_training():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = CyclicPrecision(model, 12, 2)
    whole = list(steps(model, schedule, optimizer, 5))
    kept = [part.state_dict() for part in (model, optimizer, schedule)]
    kept = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, kept)
    whole += steps(model, schedule, optimizer, 7, first=5)

    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = CyclicPrecision(model, 12, 2)
    for part, state in zip((model, optimizer, schedule), kept, strict=True):
        part.load_state_dict(state)
    assert list(steps(model, schedule, optimizer, 7, first=5)) == whole[5:]
    with pytest.raises(UsageError, match="a training of 12 steps"):
        schedule.load_state_dict({"last_step": 0, "total_steps": 13})


def test_bits_and_step_are_in_the_state_of_a_model():
    model, other = small(groups=(LayerGroup("late", "2", 6),)), small(groups=(LayerGroup("late", "2", 6),))
    model.set_bits(5, 7, {"late": 4})
    model.set_step(17)
    other.load_state_dict(model.state_dict())
    assert other.precision.bits() == model.precision.bits()
    assert other.precision.step == 17
    x = torch.randn(4, *SHAPE)
    assert torch.equal(other.eval()(x), model.eval()(x))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="bits of 2 groups of layers"):
        small().load_state_dict(state)
    del state["bits"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"bits"'):
        other.load_state_dict(state)


def test_a_step_without_the_schedule_is_noticed():
    model = small()
    schedule = CyclicPrecision(model, 4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    list(steps(model, schedule, optimizer, 1))
    schedule.step = lambda: None  # forgotten
    with pytest.warns(CptWarning, match=r"schedule\.step\(\)"):
        list(steps(model, schedule, optimizer, 2))


def test_an_exported_file_computes_what_its_graph_says(tmp_path):
    model = small()
    batches = [torch.randn(8, *SHAPE) for _ in range(4)]
    calibrate(model, batches)
    graph = export_onnx(model.eval(), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batches[0].numpy()})
    np.testing.assert_array_equal(found, IntegerExecutor(graph)(batches[0]).numpy())


@pytest.mark.parametrize("module", ["cpt_deploy.quantization.cyclic_precision"])
def test_examples_in_docstrings_are_true(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_before_a_delay_nothing_is_quantized():
    model = small(min_bits=3, max_bits=8, groups=(LayerGroup("own", "2", 6),))
    delayed = DelayedSchedule(StaticSchedule(5), 0.5)
    schedule = CyclicPrecision(model, 4, schedule=delayed, gradient_bits=6)
    for _ in range(2):
        assert not any(model.precision.branches)
        schedule.step()
    assert all(model.precision.branches)
    assert model.precision.weight_bits == {"scheduled": 5, "fixed": 8, "own": 5}
    assert model.precision.gradient_bits == 6
