"""The dynamic batcher: requests wait in one queue, and a free thread computes as many together as fit in a batch.

A free thread runs waiting requests at once. While all threads compute, requests accumulate, and the next free thread
takes them together: batches grow with the load, and a single request on an idle machine never waits.

A batch is the oldest request and later requests with the same key, in order of arrival. A request is never in two
batches: one with more rows than a batch may have is given to the model on its own. Batching never changes a bit of the
outputs: sums of integers are exact, and everything else is computed row by row.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cpt_serving.inference.errors import deadline_passed
from cpt_serving.inference.model import Model, Outcome, Tensors, bytes_of
from cpt_serving.inference.observers import ModelObserver
from cpt_serving.inference.threads import Threads

Clock = Callable[[], float]

_SMOOTHING = 0.1


class Inference(NamedTuple):
    """The outputs of a request and their timings.

    Args:
        outputs: Outputs by name.
        rows: Rows of the request.
        asked_at: Time at which the inputs were ready, in seconds of `time.monotonic`.
        queue_ms: Milliseconds in the queue.
        inference_ms: Milliseconds of the whole batch in onnxruntime.
        batch_rows: Rows of the batch.
    """

    outputs: Tensors
    rows: int
    asked_at: float
    queue_ms: float
    inference_ms: float
    batch_rows: int


@dataclass(slots=True, eq=False)
class _Request:
    inputs: Tensors
    rows: int
    size: int
    key: Hashable
    most_rows: int
    arrived: float
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Inference]"


class Batcher:
    """The queue of one model version. `submit` is called on the event loop; batches are computed in the threads.

    Args:
        model: The model that computes.
        threads: Threads that run it.
        observer: Called for each batch.
        clock: Returns seconds, like `time.monotonic`.
    """

    def __init__(
        self,
        model: Model,
        threads: Threads,
        observer: ModelObserver,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.model, self._threads, self._observer = model, threads, observer
        self._clock = clock
        self._lock = threading.Lock()
        self.waiting: dict[_Request, None] = {}
        """Requests whose computation has not begun, in order of arrival."""
        self.waiting_rows = 0
        """Rows whose computation has not begun."""
        self.waiting_bytes = 0
        """Bytes of their inputs."""
        self._jobs = 0  # in the threads, each of which takes a batch; one for each thread is enough
        self.pending = 0
        """Requests that have not been answered yet."""
        self._seconds_per_row = 0.0

    @property
    def expected_seconds_per_row(self) -> float:
        """Seconds in which all threads together computed a row recently."""
        return self._seconds_per_row / self._threads.count

    async def submit(self, inputs: Tensors, deadline: float | None = None) -> Inference:
        """Compute the rows of one request. A request cancelled while it waits is never computed.

        Args:
            inputs: Inputs of the model.
            deadline: Time of the clock after which the answer is useless.

        Raises:
            DeadlineExceededError: If the deadline passed.
        """
        loop, now = asyncio.get_running_loop(), self._clock()
        if deadline is not None and now >= deadline:
            raise deadline_passed()
        model = self.model
        # The model is asked here, so that an error is that of this request and the threads never see it.
        rows, key, most_rows = model.rows(inputs), model.batch_key(inputs), model.largest_batch(inputs)
        size, answer = bytes_of(inputs), loop.create_future()
        request = _Request(inputs, rows, size, key, most_rows, now, deadline, loop, answer)
        with self._lock:
            self.waiting[request] = None
            self.waiting_rows += request.rows
            self.waiting_bytes += request.size
            offered = self._jobs < self._threads.count
            self._jobs += offered
        timer = None if deadline is None else loop.call_later(deadline - now, self._expire, request)
        if offered and self.pending:
            # Others that are read in this turn of the loop join the batch.
            loop.call_soon(self._threads.offer, self._run_next)
        elif offered:
            self._threads.offer(self._run_next)
        self.pending += 1
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._drop(request)
            raise
        finally:
            self.pending -= 1
            if timer is not None:
                timer.cancel()

    def _run_next(self) -> None:
        """Compute the next batch unless another thread has taken it already. Runs in a compute thread."""
        try:
            if batch := self._take():
                self._compute(batch)
        finally:
            with self._lock:
                again = bool(self.waiting)
                self._jobs -= not again
            if again:  # at the end of the line, so that other models have their turns
                self._threads.offer(self._run_next)

    def _compute(self, batch: list[_Request]) -> None:
        started = self._clock()
        outcomes: Sequence[Outcome]
        try:
            outcomes = self.model.run([request.inputs for request in batch])
        except Exception as error:
            # An error of the model is raised in the requests of the batch.
            outcomes = [error] * len(batch)
        finished = self._clock()
        batch[0].loop.call_soon_threadsafe(self._deliver, batch, outcomes, started, finished)

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        with self._lock:
            now = self._clock()
            late: list[_Request] = []
            room = 0
            for request in self.waiting:
                if request.deadline is not None and now >= request.deadline:
                    late.append(request)  # the timer on the event loop answers it
                elif not batch:
                    room = request.most_rows - request.rows
                    batch.append(request)
                elif request.key == batch[0].key:
                    room -= request.rows
                    if room < 0:
                        break
                    batch.append(request)
            for request in (*batch, *late):
                self._forget(request)
        return batch

    def _deliver(self, batch: list[_Request], outcomes: Sequence[Outcome], started: float, finished: float) -> None:
        seconds, total = finished - started, sum(request.rows for request in batch)
        # All answers first, then the observers: an error in an observer must not leave a request without an answer.
        for request, outcome in zip(batch, outcomes, strict=True):
            if request.answer.done():
                continue
            if isinstance(outcome, Exception):
                request.answer.set_exception(outcome)
            else:
                waited_ms = (started - request.arrived) * 1e3
                request.answer.set_result(
                    Inference(outcome, request.rows, request.arrived, waited_ms, seconds * 1e3, total)
                )
        if not any(isinstance(outcome, Exception) for outcome in outcomes):
            self._seconds_per_row += _SMOOTHING * (seconds / total - self._seconds_per_row)
            self._observer.batch_finished(total, seconds)

    def _expire(self, request: _Request) -> None:
        self._drop(request)
        if not request.answer.done():
            request.answer.set_exception(deadline_passed())

    def _drop(self, request: _Request) -> None:
        """Remove a request from the queue, if it is still there, so that it is not computed."""
        with self._lock:
            if request in self.waiting:
                self._forget(request)

    def _forget(self, request: _Request) -> None:
        del self.waiting[request]
        self.waiting_rows -= request.rows
        self.waiting_bytes -= request.size
