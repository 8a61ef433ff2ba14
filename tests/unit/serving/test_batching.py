"""The batcher with a model that waits for the test: nothing here depends on how long anything takes."""

import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_serving.inference.batching import Batcher, BatchLimits
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.web.errors import RequestError

HOURS = 10_000.0


class GatedModel:
    """Doubles its rows; each call is noted, and waits until the test lets it pass."""

    def __init__(self):
        self.calls = []
        self._entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def __call__(self, rows):
        self.calls.append(rows.ravel().tolist())
        self._entered.release()
        assert self._gate.acquire(timeout=60)
        return rows.reshape(len(rows), -1) * 2

    async def entered(self):
        """Wait until a further call is inside."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=60)

    def let_pass(self, calls=1):
        self._gate.release(calls)


class Recorder:
    def __init__(self):
        self.finished, self.batches, self.failed, self.queued = [], [], [], []

    def request_finished(self, rows, queue_s, compute_s):
        assert queue_s >= 0
        assert compute_s >= 0
        self.finished.append(rows)

    def batch_finished(self, rows, compute_s):
        self.batches.append(rows)

    def request_failed(self, reason, seconds):
        self.failed.append(reason)

    def queue_changed(self, rows, requests):
        assert (rows > 0) == (requests > 0)
        assert requests <= rows
        self.queued.append(rows)


def rows(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@asynccontextmanager
async def batcher(model, *, slots=1, max_batch=4, max_delay_s=0.0, queue_rows=100):
    threads, recorder = ComputeThreads(slots), Recorder()
    limits = BatchLimits(max_batch, max_delay_s, queue_rows)
    try:
        yield Batcher(model, threads, limits, recorder), recorder
    finally:
        await asyncio.to_thread(threads.close)


def submit(queue, *values, deadline=None):
    """Start a request; it has been queued when this returns control to the loop once."""
    return asyncio.ensure_future(queue.submit(rows(*values), deadline))


async def settle():
    """Let everything run that the event loop has ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def answers(inferences):
    return [inference.logits.ravel().tolist() for inference in inferences]


def test_a_lone_request_runs_at_once_even_with_a_delay():
    async def scenario():
        model = GatedModel()
        async with batcher(model, max_delay_s=HOURS) as (queue, recorder):
            request = submit(queue, 1, 2)
            await model.entered()
            model.let_pass()
            inference = await request
            assert (answers([inference]), inference.batch_rows) == ([[2, 4]], 2)
            assert (recorder.finished, recorder.batches, recorder.failed) == ([2], [2], [])

    asyncio.run(scenario())


def test_what_waits_while_all_threads_compute_is_taken_together_in_order():
    async def scenario():
        model = GatedModel()
        async with batcher(model) as (queue, recorder):
            first = submit(queue, 0)
            await model.entered()
            waiting = [submit(queue, 1), submit(queue, 2, 3), submit(queue, 4), submit(queue, 5)]
            await settle()
            assert recorder.queued[-1] == 5
            model.let_pass(3)
            inferences = await asyncio.gather(first, *waiting)
            assert model.calls == [[0], [1, 2, 3, 4], [5]]
            assert answers(inferences) == [[0], [2], [4, 6], [8], [10]]
            assert [inference.batch_rows for inference in inferences] == [1, 4, 4, 4, 1]
            assert (recorder.batches, recorder.queued[-1], queue.pending) == ([1, 4, 1], 0, 0)

    asyncio.run(scenario())


def test_requests_are_neither_split_nor_overtaken():
    async def scenario():
        model = GatedModel()
        async with batcher(model) as (queue, _):
            requests = [submit(queue, 0)]
            await model.entered()
            # The second does not fit beside the first, and the third must not go before it; the fourth is too large.
            for values in ([1, 2, 3], [4, 5], [6], range(10, 17), [7]):
                requests.append(submit(queue, *values))
            await settle()
            model.let_pass(5)
            await asyncio.gather(*requests)
            assert model.calls == [[0], [1, 2, 3], [4, 5, 6], list(range(10, 17)), [7]]

    asyncio.run(scenario())


def test_a_delay_waits_for_a_full_batch_while_another_is_computed():
    async def scenario():
        model = GatedModel()
        async with batcher(model, slots=2, max_delay_s=HOURS) as (queue, _):
            requests = [submit(queue, 0)]
            await model.entered()
            requests += [submit(queue, 1), submit(queue, 2, 3)]
            await settle()
            assert model.calls == [[0]]
            requests.append(submit(queue, 4))
            await model.entered()
            assert model.calls == [[0], [1, 2, 3, 4]]
            model.let_pass(2)
            await asyncio.gather(*requests)

    asyncio.run(scenario())


def test_a_delay_ends_when_nothing_is_computed_any_more():
    async def scenario():
        model = GatedModel()
        async with batcher(model, slots=2, max_delay_s=HOURS) as (queue, _):
            requests = [submit(queue, 0)]
            await model.entered()
            requests.append(submit(queue, 1))
            await settle()
            model.let_pass(2)
            await asyncio.gather(*requests)
            assert model.calls == [[0], [1]]

    asyncio.run(scenario())


def test_a_full_queue_is_429_and_the_others_go_on():
    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=3) as (queue, recorder):
            requests = [submit(queue, 0)]
            await model.entered()
            requests += [submit(queue, 1), submit(queue, 2, 3)]
            await settle()
            with pytest.raises(RequestError, match="queue of 3 rows, but 3 are waiting") as caught:
                await queue.submit(rows(4))
            assert caught.value.status == 429
            assert int(caught.value.headers["Retry-After"]) >= 1
            with pytest.raises(RequestError, match="3 are waiting"):
                queue.require_room()
            model.let_pass(2)
            await asyncio.gather(*requests)
            queue.require_room()
            assert (recorder.failed, recorder.finished) == (["queue_full"] * 2, [1, 1, 2])
            # What could never wait, being larger than the queue, runs when the queue is empty.
            model.let_pass()
            assert len((await queue.submit(rows(*range(9)))).logits) == 9

    asyncio.run(scenario())


def test_a_deadline_that_passes_is_504_and_its_rows_are_not_computed():
    async def scenario():
        model = GatedModel()
        async with batcher(model) as (queue, recorder):
            first = submit(queue, 0)
            await model.entered()
            now = asyncio.get_running_loop().time()
            late, other = submit(queue, 1, deadline=now + 0.01), submit(queue, 2, deadline=now + HOURS)
            with pytest.raises(RequestError, match="deadline") as caught:
                await late
            assert caught.value.status == 504
            model.let_pass(2)
            assert answers(await asyncio.gather(first, other)) == [[0], [4]]
            assert model.calls == [[0], [2]]
            with pytest.raises(RequestError):
                await queue.submit(rows(5), now - 1)
            assert recorder.failed == ["deadline", "deadline"]

    asyncio.run(scenario())


def test_a_deadline_that_passes_during_the_computation_is_504_too():
    async def scenario():
        model = GatedModel()
        loop, timers = asyncio.get_running_loop(), []
        start_timer = loop.call_later

        def hold(seconds, callback, *arguments):
            timers.append((callback, arguments))
            return start_timer(seconds, callback, *arguments)

        async with batcher(model) as (queue, recorder):
            loop.call_later = hold
            late = submit(queue, 0, deadline=loop.time() + HOURS)
            await model.entered()
            loop.call_later = start_timer
            ((expire, arguments),) = timers
            expire(*arguments)
            with pytest.raises(RequestError, match="deadline"):
                await late
            model.let_pass(2)
            assert answers([await queue.submit(rows(1))]) == [[2]]
            assert recorder.finished == [1]

    asyncio.run(scenario())


def test_cancelled_requests_are_not_computed():
    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=2) as (queue, recorder):
            first = submit(queue, 0)
            await model.entered()
            gone, stays = submit(queue, 1), submit(queue, 2)
            await settle()
            gone.cancel()
            await settle()
            # Its place in the queue is free again.
            last = submit(queue, 3)
            await settle()
            model.let_pass(2)
            assert answers(await asyncio.gather(first, stays, last)) == [[0], [4], [6]]
            assert model.calls == [[0], [2, 3]]
            assert recorder.failed == ["cancelled"]

    asyncio.run(scenario())


def test_a_failing_model_fails_its_own_batch_only():
    async def scenario():
        def model(batch):
            if (batch < 0).any():
                raise ValueError("negative")
            return batch.reshape(len(batch), -1) * 2

        async with batcher(model) as (queue, recorder):
            with pytest.raises(ValueError, match="negative"):
                await queue.submit(rows(-1))
            assert answers([await queue.submit(rows(1))]) == [[2]]
            assert (recorder.failed, recorder.batches) == (["error"], [1])

    asyncio.run(scenario())


def test_an_observer_that_fails_leaves_no_request_without_an_answer():
    class Broken(Recorder):
        def batch_finished(self, rows, compute_s):
            raise ValueError("a bug")

    async def scenario():
        model, threads, heard = GatedModel(), ComputeThreads(1), []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["exception"]))
        queue = Batcher(model, threads, BatchLimits(4, 0.0, 100), Broken())
        requests = [submit(queue, value) for value in range(3)]
        model.let_pass(3)
        assert answers(await asyncio.gather(*requests)) == [[0], [2], [4]]
        assert heard
        assert all(isinstance(error, ValueError) for error in heard)
        await asyncio.to_thread(threads.close)

    asyncio.run(scenario())


def test_threads_outlive_a_job_that_fails(caplog):
    threads, done = ComputeThreads(1), threading.Event()
    threads.offer(lambda: 1 // 0)
    threads.offer(done.set)
    assert done.wait(60)
    threads.close()
    assert "a job of the compute threads failed" in caplog.text


arrivals = st.lists(
    st.tuples(st.integers(1, 7), st.integers(0, 3), st.sampled_from(["stay"] * 6 + ["cancel", "late"])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(
    arrivals,
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.002]),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_every_request_gets_the_bits_that_its_rows_have_alone(
    shared_bundle, arriving, slots, max_batch, max_delay_s, queue_rows, seed
):
    model = _real_model(shared_bundle)
    images = np.random.default_rng(seed).uniform(-1, 1, (sum(n for n, *_ in arriving), 3, 8, 8)).astype(np.float32)
    offsets = np.cumsum([0, *(count for count, *_ in arriving)])
    parts = [images[offsets[i] : offsets[i + 1]] for i in range(len(arriving))]

    async def scenario():
        async with batcher(
            model.run, slots=slots, max_batch=max_batch, max_delay_s=max_delay_s, queue_rows=queue_rows
        ) as (queue, recorder):
            requests = []
            for part, (_, pauses, fate) in zip(parts, arriving, strict=True):
                deadline = 0.0 if fate == "late" else None
                requests.append(asyncio.ensure_future(queue.submit(part, deadline)))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                if fate == "cancel":
                    requests[-1].cancel()
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert queue.pending == 0
            assert sum(recorder.batches) >= sum(recorder.finished)
            assert all(count <= max_batch or count in {n for n, *_ in arriving} for count in recorder.batches)
            return results

    for result, part, (_, _, fate) in zip(asyncio.run(scenario()), parts, arriving, strict=True):
        if isinstance(result, RequestError):
            assert result.status == (504 if fate == "late" else 429)
        elif isinstance(result, BaseException):
            assert isinstance(result, asyncio.CancelledError)
            assert fate == "cancel"
        else:
            alone = np.concatenate([model.run(row[None]) for row in part])
            assert result.logits.tobytes() == alone.tobytes()
            assert result.batch_rows >= len(part)


_models = {}


def _real_model(bundle):
    return _models.setdefault(bundle.path, OnnxRuntimeModel(bundle.onnx_path))
