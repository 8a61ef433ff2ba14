"""Admission control: the place of a request in the queue of an engine.

A request is admitted when it arrives, waits for a thread that decodes its content, then for one that computes. All
this time its rows count in one queue, and its deadline and the cancellation by its client apply.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Self, TypeVar

from cpt_serving.inference.batching import Batcher, Inference
from cpt_serving.inference.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    ServingError,
    deadline_passed,
)
from cpt_serving.inference.model import Tensors, bytes_of
from cpt_serving.inference.observers import CANCELLED, DEADLINE, ERROR, QUEUE_FULL, ModelObserver
from cpt_serving.inference.threads import Threads, Work

T = TypeVar("T")


class Queue:
    """The requests of one model version that are decoded or wait for a batch.

    Args:
        batcher: Batcher of the model.
        decoders: Threads that decode contents of requests.
        observer: Called for events of requests.
        most_rows: Rows that fill the queue.
        most_bytes: Bytes of inputs that fill the queue.
    """

    def __init__(
        self, batcher: Batcher, decoders: Threads, observer: ModelObserver, most_rows: int, most_bytes: int
    ) -> None:
        self.batcher, self.decoders, self.observer = batcher, decoders, observer
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._prepared = self._prepared_rows = 0

    @property
    def rows(self) -> int:
        """Number of rows in the queue."""
        return self.batcher.waiting_rows + self._prepared_rows

    @property
    def requests(self) -> int:
        """Number of requests in the queue."""
        return len(self.batcher.waiting) + self._prepared

    @property
    def pending(self) -> int:
        """Number of requests that were admitted and are not answered yet."""
        return self._prepared + self.batcher.pending

    def hold(self, admission: "Admission", rows: int) -> None:
        """Change the number of rows by which an admitted request counts; 0 removes it.

        Raises:
            QueueFullError: If there is no room for that many.
        """
        held = admission.rows
        if rows > held:
            others = self.rows - held
            # A request larger than the queue is admitted when nothing else waits.
            if others and others + rows > self._most_rows:
                raise self._full(others, f"{self._most_rows} rows, but {others}")
        self._prepared_rows += rows - held
        self._prepared += (rows > 0) - (held > 0)
        admission.rows = rows

    def require_bytes(self, inputs: Tensors) -> None:
        """Raise a QueueFullError unless inputs have room beside those that wait for a batch; known once decoded."""
        others, waiting = self.batcher.waiting_rows, self.batcher.waiting_bytes
        if others and waiting + bytes_of(inputs) > self._most_bytes:
            raise self._full(others, f"{self._most_bytes} bytes, but {waiting}")

    def _full(self, others: int, found: str) -> QueueFullError:
        return QueueFullError(
            f"Expected room for the request in the queue of {found} are waiting",
            retry_after_s=max(1, math.ceil(others * self.batcher.expected_seconds_per_row)),
        )


class Admission:
    """A request in the queue of an engine, from its arrival to its outputs; entered, it reserves its place.

    Args:
        queue: Queue of the engine that answers it.
        deadline: Time after which its answer is useless, in seconds of `time.monotonic`.
    """

    __slots__ = ("_arrived", "_queue", "computing", "deadline", "finished", "rows")

    def __init__(self, queue: Queue, deadline: float | None) -> None:
        self._queue = queue
        self._arrived = time.monotonic()
        self.deadline = deadline
        self.rows = 0
        """Rows by which it counts in the queue, without those already submitted to the batcher."""
        self.computing = self.finished = False

    def __enter__(self) -> Self:
        """Reserve the place.

        Raises:
            DeadlineExceededError: If the deadline has passed already.
            QueueFullError: If the queue is full.
        """
        try:
            if self.deadline is not None and self._arrived >= self.deadline:
                raise deadline_passed()
            self._queue.hold(self, 1)
        except ServingError as error:
            self._failed(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Free the place, and tell the observer of a failure."""
        if error is not None:
            self._failed(error)
        if self.rows:
            self._queue.hold(self, 0)

    def _failed(self, error: BaseException) -> None:
        # An invalid request is not a failure of inference, even if only the model noticed.
        failed = self.computing and not isinstance(error, InvalidRequestError)
        reason = failure_of(error) or (ERROR if failed else None)
        if reason is not None and not self.finished:
            self._queue.observer.request_failed(reason, time.monotonic() - self._arrived)

    def claim(self, rows: int) -> None:
        """Declare the number of rows, once it is known.

        Raises:
            QueueFullError: If there is no room for that many.
        """
        if rows != self.rows:
            self._queue.hold(self, rows)

    async def prepare(self, function: Callable[[Work], T]) -> T:
        """Run a function that decodes the request, which can be slow, in a thread, and return its result.

        Raises:
            DeadlineExceededError: If the deadline passes first.
        """
        return await self._queue.decoders.run(function, self.deadline)

    async def compute(self, inputs: Tensors) -> Inference:
        """Compute the outputs in the next possible batch.

        Raises:
            QueueFullError: If there are more rows than were claimed, or larger ones, and no room for them.
            DeadlineExceededError: If the deadline passes first.
        """
        queue = self._queue
        self.claim(queue.batcher.model.rows(inputs))
        queue.require_bytes(inputs)
        queue.hold(self, 0)
        self.computing = True
        inference = await queue.batcher.submit(inputs, self.deadline)
        self.computing, self.finished = False, True
        queue.observer.request_finished(inference.rows, inference.queue_ms / 1e3, inference.inference_ms / 1e3)
        return inference


def failure_of(error: BaseException) -> str | None:
    """Return the metrics' reason for a request without outputs; `None` if the server did not fail."""
    if isinstance(error, QueueFullError):
        return QUEUE_FULL
    if isinstance(error, DeadlineExceededError):
        return DEADLINE
    return CANCELLED if isinstance(error, asyncio.CancelledError | GeneratorExit) else None
