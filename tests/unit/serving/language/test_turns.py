"""Calls that wait are computed together where they have the same shape, and give what they give alone."""

import asyncio
import threading

import numpy as np
import pytest

from cpt_deploy.bundle.language import LanguageModel
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.observers import InferenceObserver
from cpt_serving.inference.turns import Turns


class Recorder(InferenceObserver):
    def __init__(self):
        self.rows = []

    def batch_finished(self, rows, seconds):
        self.rows.append(rows)


@pytest.fixture
def model(language_bundle):
    return LanguageModel(language_bundle.onnx_path, language_bundle.manifest)


def together(model, calls, *, leave=(), max_rows=16, max_logits=1000):
    """Have calls wait behind a job until all of them are there; return their outcomes, and the rows of each batch."""
    observer, threads, began = Recorder(), ComputeThreads(1), threading.Event()
    turns = Turns(model, threads, observer, max_rows=max_rows, max_logits=max_logits)

    async def run():
        threads.offer(began.wait)
        waiting = [asyncio.ensure_future(turns.call(*call)) for call in calls]
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


def assert_as_alone(model, calls, outcomes):
    for (given, state), (logits, after) in zip(calls, outcomes, strict=True):
        expected, state_after = model.run(given, state)
        assert np.array_equal(logits, expected)
        assert after.keys() == state_after.keys()
        assert all(np.array_equal(after[name], state_after[name]) for name in after)


def test_calls_of_one_shape_are_one_batch(model):
    _, short = model.run(tokens([2, 3]))
    _, other = model.run(tokens([5, 6]))
    _, longer = model.run(tokens([2, 3, 4]))
    _, two = model.run(tokens([2, 3], [4, 2]))
    calls = [
        (tokens([4]), short),
        (tokens([5]), longer),
        (tokens([7]), other),
        (tokens([6, 7]), short),  # reads more at once
        (tokens([0]), longer),
        (tokens([3], [6]), two),
        (tokens([2]), None),
    ]
    outcomes, rows = together(model, calls)
    assert rows == [4, 2, 1, 1]  # the oldest first, with all of its shape
    assert_as_alone(model, calls, outcomes)


@pytest.mark.parametrize(("limits", "rows"), [({"max_rows": 2}, [2, 2, 1]), ({"max_logits": 24}, [3, 2])])
def test_limits_hold(model, limits, rows):
    calls = [(tokens([number]), None) for number in range(2, 7)]
    outcomes, found = together(model, calls, **limits)
    assert found == rows
    assert_as_alone(model, calls, outcomes)


def test_more_than_a_limit_goes_alone(model):
    calls = [(tokens([2]), None), (tokens([2], [3], [4]), None), (tokens([5]), None)]
    outcomes, rows = together(model, calls, max_rows=2)
    assert rows == [2, 3]
    assert_as_alone(model, calls, outcomes)


def test_who_leaves_costs_nothing(model):
    calls = [(tokens([number]), None) for number in range(2, 6)]
    outcomes, rows = together(model, calls, leave=(0, 2))
    assert rows == [2]
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, True, False]
    assert_as_alone(model, [calls[1], calls[3]], [outcomes[1], outcomes[3]])


def test_an_error_belongs_to_those_who_asked(model):
    calls = [(tokens([8]), None), (tokens([2, 3]), None)]  # the first is beyond the vocabulary
    outcomes, rows = together(model, calls)
    assert isinstance(outcomes[0], ValueError)
    assert rows == [1]
    assert_as_alone(model, calls[1:], outcomes[1:])
