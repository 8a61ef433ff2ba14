"""Dynamic batching: requests wait in one bounded queue, and a free thread computes as many as fit together.

A thread that is free runs what is there at once. While all threads compute, requests pile up, and the next free thread
takes them together: batches grow with the load by themselves. Only with `max_delay_s` above zero, and only while
another batch of the model is being computed, does a free thread wait that long for a batch to fill; a lone request on
an idle machine never waits.

Requests are taken in the order of their arrival, whole: one with more rows than `max_batch` runs on its own.
"""

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.observers import InferenceObserver
from cpt_serving.web.errors import RequestError

Rows = npt.NDArray[np.float32]
Clock = Callable[[], float]

QUEUE_FULL, DEADLINE, CANCELLED, ERROR = "queue_full", "deadline", "cancelled", "error"
FAILURES = (QUEUE_FULL, DEADLINE, CANCELLED, ERROR)
"""Why a request can end without logits."""

_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Inference:
    """Logits of a request's rows and what they took.

    Args:
        logits: float32 (N, K).
        queue_ms: Milliseconds that the rows waited for their turn.
        inference_ms: Milliseconds in onnxruntime, of the whole batch.
        batch_rows: Rows of the batch that they rode in.
    """

    logits: Rows
    queue_ms: float
    inference_ms: float
    batch_rows: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How requests are put together.

    Args:
        max_batch: Most rows that are computed together.
        max_delay_s: Seconds that a request waits for company while another batch is being computed.
        queue_rows: Most rows that wait; what would come on top is refused.
    """

    max_batch: int
    max_delay_s: float
    queue_rows: int


@dataclass(slots=True, eq=False)
class _Request:
    rows: Rows
    arrived: float
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Inference]"


class Batcher:
    """The queue of one model version. `submit` is for the event loop; the rest happens in the compute threads.

    Args:
        compute: The model: rows (N, C, H, W) to logits (N, K), callable from several threads at once.
        threads: Where it runs.
        limits: Sizes and times.
        observer: Is told what happens.
        clock: Seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        compute: Callable[[Rows], Rows],
        threads: ComputeThreads,
        limits: BatchLimits,
        observer: InferenceObserver,
        clock: Clock = time.monotonic,
    ) -> None:
        self._compute = compute
        self._threads = threads
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._waiting: OrderedDict[_Request, None] = OrderedDict()
        self._waiting_rows = 0
        self._running = 0
        self._seconds_per_row = 0.0
        self.pending = 0
        """Requests that have not been answered yet."""

    def require_room(self) -> None:
        """Raise a 429 if the queue is full already."""
        if self._waiting_rows >= self._limits.queue_rows:
            self._observer.request_failed(QUEUE_FULL, 0.0)
            raise self._queue_full()

    async def submit(self, rows: Rows, deadline: float | None = None) -> Inference:
        """Compute the rows of one request, together and in their order.

        Args:
            rows: float32 (N, C, H, W).
            deadline: Time of the clock after which the answer is of no use.

        Raises:
            RequestError: 429 if the queue is full, 504 if the deadline passed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(rows, self._clock(), deadline, loop, loop.create_future())
        if deadline is not None and request.arrived >= deadline:
            self._observer.request_failed(DEADLINE, 0.0)
            raise _deadline_passed()
        self._enqueue(request)
        timer = None if deadline is None else loop.call_later(deadline - request.arrived, self._expire, request)
        self.pending += 1
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._fail(request, CANCELLED)
            raise
        finally:
            self.pending -= 1
            if timer is not None:
                timer.cancel()

    def _enqueue(self, request: _Request) -> None:
        count = len(request.rows)
        with self._changed:
            full = bool(self._waiting) and self._waiting_rows + count > self._limits.queue_rows
            if not full:
                self._waiting[request] = None
                self._waiting_rows += count
                if self._waiting_rows >= self._limits.max_batch:
                    self._changed.notify()
        if full:
            self._observer.request_failed(QUEUE_FULL, 0.0)
            raise self._queue_full()
        self._observer.queue_changed(self._waiting_rows, len(self._waiting))
        self._threads.offer(self._run_next)

    def _run_next(self) -> None:
        """Compute the next batch, if no other thread has taken it already. Runs in a compute thread."""
        batch = self._take()
        if not batch:
            return
        started = self._clock()
        outcome: Rows | Exception
        try:
            outcome = self._compute(
                batch[0].rows if len(batch) == 1 else np.concatenate([request.rows for request in batch])
            )
        except Exception as error:
            # Whatever goes wrong inside of the model belongs to the requests that asked for it.
            outcome = error
        finished = self._clock()
        with self._changed:
            self._running -= 1
            if self._running == 0:
                self._changed.notify_all()
        batch[0].loop.call_soon_threadsafe(self._deliver, batch, outcome, started, finished)

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        total = 0
        with self._changed:
            self._wait_for_company()
            now = self._clock()
            while self._waiting:
                request = next(iter(self._waiting))
                if batch and total + len(request.rows) > self._limits.max_batch:
                    break
                del self._waiting[request]
                self._waiting_rows -= len(request.rows)
                # The timer on the event loop answers those that are too late.
                if request.deadline is None or now < request.deadline:
                    batch.append(request)
                    total += len(request.rows)
            self._running += bool(batch)
        return batch

    def _wait_for_company(self) -> None:
        """Wait, with the lock held, until a batch is full, the oldest request's delay is over, or nothing runs."""
        while 0 < self._waiting_rows < self._limits.max_batch and self._running:
            left = next(iter(self._waiting)).arrived + self._limits.max_delay_s - self._clock()
            if left <= 0:
                return
            self._changed.wait(left)

    def _deliver(self, batch: list[_Request], outcome: Rows | Exception, started: float, finished: float) -> None:
        seconds = finished - started
        total = sum(len(request.rows) for request in batch)
        answered: list[tuple[_Request, int]] = []
        offset = 0
        # First all answers, then the observers: what goes wrong in one must not leave a request without an answer.
        for request in batch:
            count = len(request.rows)
            if not request.answer.done():
                answered.append((request, count))
                if isinstance(outcome, Exception):
                    request.answer.set_exception(outcome)
                else:
                    logits = outcome[offset : offset + count]
                    queued_ms = (started - request.arrived) * 1e3
                    request.answer.set_result(Inference(logits, queued_ms, seconds * 1e3, total))
            offset += count
        self._observer.queue_changed(self._waiting_rows, len(self._waiting))
        if not isinstance(outcome, Exception):
            self._seconds_per_row += _SMOOTHING * (seconds / total - self._seconds_per_row)
            self._observer.batch_finished(total, seconds)
        for request, count in answered:
            if isinstance(outcome, Exception):
                self._observer.request_failed(ERROR, finished - request.arrived)
            else:
                self._observer.request_finished(count, started - request.arrived, seconds)

    def _expire(self, request: _Request) -> None:
        if not request.answer.done():
            request.answer.set_exception(_deadline_passed())
            self._fail(request, DEADLINE)

    def _fail(self, request: _Request, reason: str) -> None:
        """Take a request out of the queue, if it is still there, so that nothing is computed for it."""
        with self._changed:
            if request in self._waiting:
                del self._waiting[request]
                self._waiting_rows -= len(request.rows)
        self._observer.queue_changed(self._waiting_rows, len(self._waiting))
        self._observer.request_failed(reason, self._clock() - request.arrived)

    def _queue_full(self) -> RequestError:
        seconds = math.ceil(self._waiting_rows * self._seconds_per_row / self._threads.count)
        return RequestError(
            429,
            f"Expected room for the request in the queue of {self._limits.queue_rows} rows, "
            f"but {self._waiting_rows} are waiting",
            {"Retry-After": str(max(1, seconds))},
        )


def _deadline_passed() -> RequestError:
    return RequestError(504, "Expected an answer before the request's deadline, but it passed")
