"""The engine of one model version: loading in a thread, admission control, and batching.

A request is admitted when it arrives, waits for a thread that decodes its content, then for one that computes. All
this time its rows count in one queue, and its deadline and the cancellation by its client apply.
"""

import asyncio
import enum
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import anyio.to_thread

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import CptError
from cpt_serving.inference.batching import Batcher, Inference
from cpt_serving.inference.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    ServingError,
    deadline_passed,
    not_ready,
)
from cpt_serving.inference.model import Model, Tensors
from cpt_serving.inference.observers import CANCELLED, DEADLINE, ERROR, QUEUE_FULL, ModelObserver
from cpt_serving.inference.threads import Threads, Work
from cpt_serving.settings import ServeSettings

logger = logging.getLogger(__name__)

M_co = TypeVar("M_co", bound=Model, covariant=True)
T = TypeVar("T")


class EngineState(enum.StrEnum):
    """State of a model version, in the words of the repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MEANING = {
    EngineState.LOADING: "the model is being loaded",
    EngineState.READY: "ready",
    EngineState.UNLOADING: "the model is being unloaded",
    EngineState.UNAVAILABLE: "the model is not loaded",
}


class Engine(Generic[M_co]):
    """One model version, for use from the event loop.

    An engine that was removed from the repository still answers the requests that found it there: it and its model live
    as long as one of them refers to it.

    Args:
        model: The model that computes.
        settings: Settings of batching and limits.
        threads: Threads that compute, shared by the models of the process.
        decoders: Threads that decode contents of requests, shared likewise.
        observer: Called for events of requests, batches and texts.
    """

    def __init__(
        self,
        model: M_co,
        settings: ServeSettings,
        threads: Threads,
        decoders: Threads,
        observer: ModelObserver,
    ) -> None:
        self.model = model
        self.decoders = decoders
        self.observer = observer
        self.state = EngineState.LOADING
        self.reason = ""
        self._settings = settings
        self._threads = threads
        self._loaded = False
        # With large inputs, fewer rows fill the queue.
        self._most_rows = max(1, min(settings.queue_rows, settings.queue_bytes // model.row_bytes))
        self._prepared = self._prepared_rows = 0
        self.texts = 0
        """Texts under way."""
        self.batcher = Batcher(model, threads, observer)

    @property
    def bundle(self) -> Bundle:
        """The bundle of the model."""
        return self.model.bundle

    @property
    def queued(self) -> tuple[int, int]:
        """Rows, and their requests, that are decoded or wait for a batch."""
        return self.batcher.waiting_rows + self._prepared_rows, len(self.batcher.waiting) + self._prepared

    @property
    def pending(self) -> int:
        """Number of requests that were admitted and are not answered yet."""
        return self._prepared + self.batcher.pending + self.texts

    @property
    def status(self) -> str:
        """Reason for the engine's state, as text."""
        return f"{_MEANING[self.state]}: {self.reason}" if self.reason else _MEANING[self.state]

    def load_now(self) -> None:
        """Load the model; blocks until that is done.

        Raises:
            CptError: If it cannot be loaded or does not reproduce its golden sample.
        """
        self.model.load()
        self._loaded = True
        if self.state is EngineState.LOADING:
            self.state = EngineState.READY

    async def load(self) -> None:
        """Load the model in a thread; `state` tells afterwards whether that succeeded."""
        try:
            await anyio.to_thread.run_sync(self.load_now)
        except CptError as error:
            self.fail(error.message)
        except Exception as error:
            logger.exception("loading %s failed", self.bundle.path)
            self.fail(f"{type(error).__name__}")

    def fail(self, reason: str) -> None:
        """Record why the model could not be loaded."""
        self.state = EngineState.UNAVAILABLE
        self.reason = f"it could not be loaded: {reason}"
        logger.error("%s version %s: %s", self.bundle.name, self.bundle.version, self.status)

    def retire(self, reason: str) -> None:
        """Fail readiness from now on; requests are still answered."""
        self.state = EngineState.UNLOADING
        self.reason = reason

    def require_ready(self) -> None:
        """Raise a NotReadyError unless the engine is ready for new traffic."""
        if self.state is not EngineState.READY:
            raise not_ready(self.status)

    def admit(self, deadline: float | None = None) -> "Admission":
        """Return a place in the queue for a request, which counts as one row until its number of rows is known.

        Args:
            deadline: Time after which its answer is useless, in seconds of `time.monotonic`.
        """
        return Admission(self, deadline)

    @contextmanager
    def admit_text(self) -> Iterator[None]:
        """Take one of the places for concurrent texts, and report to the observer how the request ended.

        Raises:
            NotReadyError: If the model is not loaded.
            QueueFullError: If all places are taken.
        """
        self.require_loaded()
        most = self._settings.generations
        if self.texts >= most:
            self.observer.request_failed(QUEUE_FULL, 0.0)
            raise QueueFullError(
                f"Expected room for the text, but {self.texts} of at most {most} are under way", retry_after_s=1
            )
        started = time.monotonic()
        self.texts += 1
        try:
            yield
        except BaseException as error:
            self.observer.request_failed(failure_of(error) or ERROR, time.monotonic() - started)
            raise
        else:
            self.observer.request_finished(1, 0.0, time.monotonic() - started)
        finally:
            self.texts -= 1

    def require_loaded(self) -> None:
        """Raise a NotReadyError unless the model is loaded."""
        if not self._loaded:
            raise not_ready(self.status)

    def fixed(self, admission: "Admission", rows: int) -> None:
        """Change the number of rows by which an admitted request counts in the queue; 0 removes it.

        Raises:
            QueueFullError: If there is no room for that many.
        """
        held = admission.rows
        if rows > held:
            others = self.batcher.waiting_rows + self._prepared_rows - held
            # A request larger than the queue is admitted when nothing else waits.
            if others and others + rows > self._most_rows:
                raise self._queue_full(others)
        self._prepared_rows += rows - held
        self._prepared += (rows > 0) - (held > 0)
        admission.rows = rows

    def _queue_full(self, waiting: int) -> QueueFullError:
        seconds = math.ceil(waiting * self.batcher.seconds_per_row / self._threads.count)
        return QueueFullError(
            f"Expected room for the request in the queue of {self._most_rows} rows, but {waiting} are waiting",
            retry_after_s=max(1, seconds),
        )


class Admission:
    """A request in the queue of an engine, from its arrival to its outputs; entered, it reserves its place.

    Args:
        engine: Engine that answers it.
        deadline: Time after which its answer is useless, in seconds of `time.monotonic`.
    """

    __slots__ = ("_arrived", "_engine", "computing", "deadline", "finished", "rows")

    def __init__(self, engine: Engine[Model], deadline: float | None) -> None:
        self._engine = engine
        self._arrived = time.monotonic()
        self.deadline = deadline
        self.rows = 0
        """Rows by which it counts in the queue, without those already submitted to the batcher."""
        self.computing = self.finished = False

    def __enter__(self) -> Self:
        """Reserve the place.

        Raises:
            NotReadyError: If the model is not loaded.
            DeadlineExceededError: If the deadline has passed already.
            QueueFullError: If the queue is full.
        """
        engine = self._engine
        engine.require_loaded()
        try:
            if self.deadline is not None and self._arrived >= self.deadline:
                raise deadline_passed()
            engine.fixed(self, 1)
        except ServingError as error:
            self._failed(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Free the place, and tell the observer of a failure."""
        if error is not None:
            self._failed(error)
        if self.rows:
            self._engine.fixed(self, 0)

    def _failed(self, error: BaseException) -> None:
        # An invalid request is not a failure of inference, even if only the model noticed.
        failed = self.computing and not isinstance(error, InvalidRequestError)
        reason = failure_of(error) or (ERROR if failed else None)
        if reason is not None and not self.finished:
            self._engine.observer.request_failed(reason, time.monotonic() - self._arrived)

    def claim(self, rows: int) -> None:
        """Declare the number of rows, once it is known.

        Raises:
            QueueFullError: If there is no room for that many.
        """
        if rows != self.rows:
            self._engine.fixed(self, rows)

    async def prepare(self, function: Callable[[Work], T]) -> T:
        """Run a function that decodes the request, which can be slow, in a thread, and return its result.

        Raises:
            DeadlineExceededError: If the deadline passes first.
        """
        return await self._engine.decoders.run(function, self.deadline)

    async def compute(self, inputs: Tensors) -> Inference:
        """Compute the outputs in the next possible batch.

        Raises:
            QueueFullError: If there are more rows than were claimed, and no room for them.
            DeadlineExceededError: If the deadline passes first.
        """
        engine = self._engine
        self.claim(engine.model.rows(inputs))
        engine.fixed(self, 0)
        self.computing = True
        inference = await engine.batcher.submit(inputs, self.deadline)
        self.computing, self.finished = False, True
        engine.observer.request_finished(inference.rows, inference.queue_ms / 1e3, inference.inference_ms / 1e3)
        return inference


def failure_of(error: BaseException) -> str | None:
    """Return the metrics' reason for a request without outputs; `None` if the server did not fail."""
    if isinstance(error, QueueFullError):
        return QUEUE_FULL
    if isinstance(error, DeadlineExceededError):
        return DEADLINE
    return CANCELLED if isinstance(error, asyncio.CancelledError | GeneratorExit) else None
