"""The queue of an engine with a model that waits for the test: nothing here depends on how long anything takes."""

import asyncio
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_serving import load_settings
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.errors import DeadlineExceededError, QueueFullError
from cpt_serving.inference.observers import ModelObserver
from cpt_serving.inference.threads import Threads

HOURS = 9.0


class RowModel:
    """A model of rows, with what an engine asks of any."""

    bundle = SimpleNamespace(name="rows", version="1", path="nowhere")
    row_bytes = 4

    def __init__(self, compute=None):
        self.compute = compute or self

    def load(self):
        """Nothing has to be loaded."""

    def rows(self, inputs):
        return len(inputs["x"])

    def batch_key(self, inputs):
        return inputs["x"].shape[2:]

    def largest_batch(self, inputs):
        return self.max_batch

    def run(self, requests):
        made = self.compute(np.concatenate([request["x"] for request in requests]))
        ends = np.cumsum([len(request["x"]) for request in requests])
        return [{"y": part} for part in np.split(made, ends[:-1])]


class GatedModel(RowModel):
    """Doubles its rows; each call is noted, and waits until the test lets it pass."""

    def __init__(self):
        super().__init__()
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


class Recorder(ModelObserver):
    def __init__(self):
        self.finished, self.batches, self.failed = [], [], []

    def request_finished(self, rows, queue_s, compute_s):
        assert queue_s >= 0
        assert compute_s >= 0
        self.finished.append(rows)

    def batch_finished(self, rows, compute_s):
        self.batches.append(rows)

    def request_failed(self, reason, seconds):
        self.failed.append(reason)


def rows(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


@asynccontextmanager
async def batcher(model, *, slots=1, max_batch=4, queue_rows=100, recorder=None, **more):
    """An engine whose queue is tested, and what it tells."""
    model = model if isinstance(model, RowModel) else RowModel(model)
    model.max_batch = max_batch
    recorder = recorder or Recorder()
    settings = load_settings(bundle="nowhere", max_batch=max_batch, queue_rows=queue_rows, **more)
    threads, decoders = Threads(slots, "compute"), Threads(1, "decode")
    engine = Engine(model, settings, threads, decoders, recorder)
    engine.load_now()
    try:
        yield engine, recorder
    finally:
        await asyncio.to_thread(decoders.close)
        await asyncio.to_thread(threads.close)


async def infer(engine, values, deadline=None, read=None):
    """Ask as routes do: enter the queue, have the content read if that takes long, and compute."""
    with engine.admit(deadline) as admission:
        if read is not None:
            admission.claim(len(values))
            values = await admission.prepare(lambda work: read(work, values))
        return await admission.compute({"x": values})


def submit(engine, *values, deadline=None, read=None):
    """Start a request; it has been queued when this returns control to the loop once."""
    return asyncio.ensure_future(infer(engine, rows(*values), deadline, read))


async def calibrate():
    """Let everything run that the event loop has ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def answers(inferences):
    return [inference.outputs["y"].ravel().tolist() for inference in inferences]


def test_a_lone_request_runs_at_once():
    async def scenario():
        model = GatedModel()
        async with batcher(model) as (queue, recorder):
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
            await calibrate()
            assert queue.queued[0] == 5
            model.let_pass(3)
            inferences = await asyncio.gather(first, *waiting)
            assert model.calls == [[0], [1, 2, 3, 4], [5]]
            assert answers(inferences) == [[0], [2], [4, 6], [8], [10]]
            assert [inference.batch_rows for inference in inferences] == [1, 4, 4, 4, 1]
            assert (recorder.batches, queue.queued[0], queue.pending) == ([1, 4, 1], 0, 0)

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
            await calibrate()
            model.let_pass(5)
            await asyncio.gather(*requests)
            assert model.calls == [[0], [1, 2, 3], [4, 5, 6], list(range(10, 17)), [7]]

    asyncio.run(scenario())


def test_a_full_queue_is_429_and_the_others_go_on():
    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=3) as (queue, recorder):
            requests = [submit(queue, 0)]
            await model.entered()
            requests += [submit(queue, 1), submit(queue, 2, 3)]
            await calibrate()
            with pytest.raises(QueueFullError, match="queue of 3 rows, but 3 are waiting") as caught:
                await infer(queue, rows(4))
            assert caught.value.retry_after_s >= 1
            model.let_pass(2)
            await asyncio.gather(*requests)
            assert (recorder.failed, recorder.finished) == (["queue_full"], [1, 1, 2])
            # What could never wait, being larger than the queue, runs when the queue is empty.
            model.let_pass()
            assert len((await infer(queue, rows(*range(9)))).outputs["y"]) == 9

    asyncio.run(scenario())


def test_a_deadline_that_passes_is_504_and_its_rows_are_not_computed():
    async def scenario():
        model = GatedModel()
        async with batcher(model) as (queue, recorder):
            first = submit(queue, 0)
            await model.entered()
            now = asyncio.get_running_loop().time()
            late, other = submit(queue, 1, deadline=now + 0.01), submit(queue, 2, deadline=now + HOURS)
            with pytest.raises(DeadlineExceededError, match="deadline"):
                await late
            model.let_pass(2)
            assert answers(await asyncio.gather(first, other)) == [[0], [4]]
            assert model.calls == [[0], [2]]
            with pytest.raises(DeadlineExceededError):
                await infer(queue, rows(5), now - 1)
            assert recorder.failed == ["deadline", "deadline"]

    asyncio.run(scenario())


def test_a_deadline_that_passes_during_the_computation_is_504_too():
    async def scenario():
        model = GatedModel()
        loop, timers = asyncio.get_running_loop(), []
        start_timer = loop.call_later

        def fixed(seconds, callback, *arguments):
            timers.append((callback, arguments))
            return start_timer(seconds, callback, *arguments)

        async with batcher(model) as (queue, recorder):
            loop.call_later = fixed
            late = submit(queue, 0, deadline=loop.time() + HOURS)
            await model.entered()
            loop.call_later = start_timer
            ((expire, arguments),) = timers
            expire(*arguments)
            with pytest.raises(DeadlineExceededError, match="deadline"):
                await late
            model.let_pass(2)
            assert answers([await infer(queue, rows(1))]) == [[2]]
            assert recorder.finished == [1]

    asyncio.run(scenario())


def test_cancelled_requests_are_not_computed():
    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=2) as (queue, recorder):
            first = submit(queue, 0)
            await model.entered()
            gone, stays = submit(queue, 1), submit(queue, 2)
            await calibrate()
            gone.cancel()
            await calibrate()
            # Its place in the queue is free again.
            last = submit(queue, 3)
            await calibrate()
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
                await infer(queue, rows(-1))
            assert answers([await infer(queue, rows(1))]) == [[2]]
            assert (recorder.failed, recorder.batches) == (["error"], [1])

    asyncio.run(scenario())


def test_an_observer_that_fails_leaves_no_request_without_an_answer():
    class Broken(Recorder):
        def batch_finished(self, rows, compute_s):
            raise ValueError("a bug")

    async def scenario():
        model, heard = GatedModel(), []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["exception"]))
        async with batcher(model, recorder=Broken()) as (queue, _):
            requests = [submit(queue, value) for value in range(3)]
            model.let_pass(3)
            assert answers(await asyncio.gather(*requests)) == [[0], [2], [4]]
            assert heard
            assert all(isinstance(error, ValueError) for error in heard)

    asyncio.run(scenario())


class Gate:
    """Reading a request's content, which waits until the test lets it pass."""

    def __init__(self):
        self.works = []
        self._entered, self._gate = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, work, values):
        self.works.append(work)
        self._entered.release()
        assert self._gate.acquire(timeout=60)
        work.check()
        return values

    async def entered(self):
        assert await asyncio.to_thread(self._entered.acquire, timeout=60)

    def let_pass(self, count=1):
        self._gate.release(count)


def test_requests_that_wait_for_a_decoder_or_are_decoded_count_in_the_queue():
    async def scenario():
        model, gate = GatedModel(), Gate()
        model.let_pass(9)
        async with batcher(model, queue_rows=4) as (queue, recorder):
            requests = [submit(queue, 1, 2, read=gate), submit(queue, 3, read=gate), submit(queue, 4, read=gate)]
            await gate.entered()
            assert (queue.queued[0], queue.pending) == (4, 3)
            with pytest.raises(QueueFullError, match="queue of 4 rows, but 4 are waiting"):
                await infer(queue, rows(5), read=gate)
            gate.let_pass(3)
            assert answers(await asyncio.gather(*requests)) == [[2, 4], [6], [8]]
            assert (queue.queued[0], queue.pending, recorder.failed) == (0, 0, ["queue_full"])

    asyncio.run(scenario())


@pytest.mark.parametrize("place", ["waiting for a decoder", "being decoded"])
@pytest.mark.parametrize("end", ["deadline", "cancelled"])
def test_a_request_ends_where_it_is_and_frees_its_place(place, end):
    async def scenario():
        model, gate = GatedModel(), Gate()
        model.let_pass(9)
        async with batcher(model, queue_rows=2) as (queue, recorder):
            deadline = asyncio.get_running_loop().time() + (0.05 if end == "deadline" else HOURS)
            ahead = [submit(queue, 0, read=gate)] if place == "waiting for a decoder" else []
            if ahead:
                await gate.entered()
            ends = submit(queue, 1, deadline=deadline, read=gate)
            await calibrate()
            if not ahead:
                await gate.entered()
            if end == "cancelled":
                ends.cancel()
            # Its decoder, or the one before it, is still at work when the answer comes.
            with pytest.raises(DeadlineExceededError if end == "deadline" else asyncio.CancelledError):
                await ends
            assert (recorder.failed, queue.pending) == ([end], len(ahead))
            after = submit(queue, 2, read=gate)
            gate.let_pass(3)
            assert answers(await asyncio.gather(*ahead, after)) == [*([[0]] * len(ahead)), [4]]
            # What nobody waits for is not read, or was told to stop.
            assert len(gate.works) == 2
            assert sorted(value for call in model.calls for value in call) == ([0, 2] if ahead else [2])

    asyncio.run(scenario())


def test_a_queue_of_large_rows_is_shorter():
    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=100, queue_bytes=8) as (queue, _):
            requests = [submit(queue, 0)]
            await model.entered()
            requests += [submit(queue, 1), submit(queue, 2)]
            await calibrate()
            with pytest.raises(QueueFullError, match="queue of 2 rows"):
                await infer(queue, rows(3))
            model.let_pass(3)
            await asyncio.gather(*requests)

    asyncio.run(scenario())


def test_bytes_of_rows_of_free_sizes_count_in_the_queue():
    def long(length):
        return np.zeros((1, 1, 1, length), np.float32)

    async def scenario():
        model = GatedModel()
        async with batcher(model, queue_rows=100, queue_bytes=100) as (queue, recorder):
            requests = [asyncio.ensure_future(infer(queue, long(2)))]
            await model.entered()
            # One that is larger than the queue waits if it is alone.
            large = asyncio.ensure_future(infer(queue, long(30)))
            await calibrate()
            with pytest.raises(QueueFullError, match="queue of 100 bytes, but 120 are waiting"):
                await infer(queue, long(1))
            large.cancel()
            await calibrate()
            requests += [asyncio.ensure_future(infer(queue, long(12))) for _ in range(2)]
            await calibrate()
            with pytest.raises(QueueFullError, match="queue of 100 bytes, but 96 are waiting"):
                await infer(queue, long(2))
            requests.append(asyncio.ensure_future(infer(queue, long(1))))
            model.let_pass(9)
            await asyncio.gather(*requests)
            assert (queue.batcher.waiting_bytes, queue.queued, queue.pending) == (0, (0, 0), 0)
            assert sorted(recorder.failed) == ["cancelled", "queue_full", "queue_full"]

    asyncio.run(scenario())


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
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_every_request_gets_the_bits_that_its_rows_have_alone(
    shared_bundle, arriving, slots, max_batch, queue_rows, seed
):
    compute = _real_model(shared_bundle)
    images = np.random.default_rng(seed).uniform(-1, 1, (sum(n for n, *_ in arriving), 3, 8, 8)).astype(np.float32)
    offsets = np.cumsum([0, *(count for count, *_ in arriving)])
    parts = [images[offsets[i] : offsets[i + 1]] for i in range(len(arriving))]

    async def scenario():
        async with batcher(compute, slots=slots, max_batch=max_batch, queue_rows=queue_rows) as (queue, recorder):
            requests = []
            for part, (_, pauses, fate) in zip(parts, arriving, strict=True):
                deadline = 0.0 if fate == "late" else None
                requests.append(asyncio.ensure_future(infer(queue, part, deadline)))
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
        if isinstance(result, DeadlineExceededError | QueueFullError):
            assert isinstance(result, DeadlineExceededError) == (fate == "late")
        elif isinstance(result, BaseException):
            assert isinstance(result, asyncio.CancelledError)
            assert fate == "cancel"
        else:
            alone = np.concatenate([compute(row[None]) for row in part])
            assert result.outputs["y"].tobytes() == alone.tobytes()
            assert result.batch_rows >= len(part)


_models = {}


def _real_model(bundle):
    model = _models.setdefault(bundle.path, OnnxRuntimeModel(bundle.onnx_path, bundle.signature))
    return lambda rows: model.run({"image": rows})["logits"]


def test_a_request_of_which_the_model_knows_no_size_harms_no_other():
    class Choosy(RowModel):
        def largest_batch(self, inputs):
            if inputs["x"].max() > 9:
                raise ValueError("Expected at most 9")
            return self.max_batch

    async def scenario():
        async with batcher(Choosy(lambda x: x * 2)) as (queue, _):
            with pytest.raises(ValueError, match="at most 9"):
                await asyncio.wait_for(submit(queue, 10), 30)
            assert answers([await asyncio.wait_for(submit(queue, 1), 30)]) == [[2]]

    asyncio.run(scenario())
