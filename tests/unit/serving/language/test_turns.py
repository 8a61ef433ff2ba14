"""Calls that wait are computed together where they have the same shape, and give what they give alone."""

import asyncio
import threading

import numpy as np
import pytest

from cpt_deploy.bundle import OnnxRuntimeModel, next_states
from cpt_serving import load_settings
from cpt_serving.adapters import adapter_of
from cpt_serving.inference.batching import Batcher
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.observers import ModelObserver
from cpt_serving.inference.threads import Threads


class Recorder(ModelObserver):
    def __init__(self):
        self.rows = []

    def batch_finished(self, rows, seconds):
        self.rows.append(rows)


@pytest.fixture
def model(language_bundle):
    return OnnxRuntimeModel(language_bundle.onnx_path, language_bundle.signature)


@pytest.fixture
def adapter(language_bundle):
    def make(**settings):
        made = adapter_of(language_bundle, load_settings(bundle=language_bundle.path, **settings), MemoryBudget(1))
        made.load()
        return made

    return make


def together(adapter, calls, *, leave=()):
    """Have calls wait behind a job until all of them are there; return their outcomes, and the rows of each batch."""
    observer, threads, began = Recorder(), Threads(1, "compute"), threading.Event()
    batcher = Batcher(adapter, threads, observer)

    async def run():
        threads.offer(began.wait)
        waiting = [asyncio.ensure_future(batcher.submit(call)) for call in calls]
        await asyncio.sleep(0)
        for number in leave:
            waiting[number].cancel()
        await asyncio.sleep(0)
        began.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    try:
        return asyncio.run(run()), observer.rows
    finally:
        began.set()
        threads.close()


def tokens(*rows):
    return np.array(rows, np.int64)


def call(adapter, model, given, before=None):
    """The inputs of a call that reads tokens, after others."""
    if before is None:
        return adapter.inputs_of(given, None)
    return {"input_ids": given, **next_states(model.signature, model.run({"input_ids": before}))}


def assert_as_alone(model, calls, outcomes):
    for inputs, outcome in zip(calls, outcomes, strict=True):
        expected = model.run(inputs)
        assert outcome.outputs.keys() == expected.keys()
        assert all(np.array_equal(outcome.outputs[name], value) for name, value in expected.items())


def test_calls_of_one_shape_are_one_batch(model, adapter):
    made = adapter()
    calls = [
        call(made, model, tokens([4]), tokens([2, 3])),
        call(made, model, tokens([5]), tokens([2, 3, 4])),
        call(made, model, tokens([7]), tokens([5, 6])),
        call(made, model, tokens([6, 7]), tokens([2, 3])),  # reads more at once
        call(made, model, tokens([0]), tokens([2, 3, 4])),
        call(made, model, tokens([3], [6]), tokens([2, 3], [4, 2])),
        call(made, model, tokens([2])),
    ]
    outcomes, rows = together(made, calls)
    assert rows == [4, 2, 1, 1]  # the oldest first, with all of its shape
    assert_as_alone(model, calls, outcomes)


@pytest.mark.parametrize(("rows", "logits", "found"), [(2, 1000, [2, 2, 1]), (16, 24, [3, 2])])
def test_limits_hold(model, adapter, monkeypatch, rows, logits, found):
    monkeypatch.setattr("cpt_serving.adapters.signature_model._BATCH_BYTES", 4 * logits)
    made = adapter(max_batch=rows)
    calls = [call(made, model, tokens([number])) for number in range(2, 7)]
    outcomes, batches = together(made, calls)
    assert batches == found
    assert_as_alone(model, calls, outcomes)


def test_more_than_a_limit_goes_alone_and_is_not_overtaken(model, adapter):
    made = adapter(max_batch=2)
    calls = [call(made, model, given) for given in (tokens([2]), tokens([2], [3], [4]), tokens([5]))]
    outcomes, rows = together(made, calls)
    assert rows == [1, 3, 1]
    assert_as_alone(model, calls, outcomes)


def test_who_leaves_costs_nothing(model, adapter):
    made = adapter()
    calls = [call(made, model, tokens([number])) for number in range(2, 6)]
    outcomes, rows = together(made, calls, leave=(0, 2))
    assert rows == [2]
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, True, False]
    assert_as_alone(model, [calls[1], calls[3]], [outcomes[1], outcomes[3]])


def test_an_error_belongs_to_those_who_asked(model, adapter):
    made = adapter()
    calls = [call(made, model, tokens([8])), call(made, model, tokens([2, 3]))]  # the first is beyond the vocabulary
    outcomes, rows = together(made, calls)
    assert isinstance(outcomes[0], InvalidRequestError)
    assert rows == [1]
    assert_as_alone(model, calls[1:], outcomes[1:])
