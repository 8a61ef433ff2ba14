"""The engine of one model version: loading in a thread, its state, and the places for its requests."""

import enum
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio.to_thread

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import CptError
from cpt_serving.inference.admission import Admission, Queue, failure_of
from cpt_serving.inference.batching import Batcher
from cpt_serving.inference.errors import QueueFullError, not_ready
from cpt_serving.inference.model import Model
from cpt_serving.inference.observers import ERROR, QUEUE_FULL, ModelObserver
from cpt_serving.inference.threads import Threads
from cpt_serving.settings import ServeSettings

logger = logging.getLogger(__name__)

M_co = TypeVar("M_co", bound=Model, covariant=True)


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
        self._most_texts = settings.generations
        self._loaded = False
        self.texts = 0
        """Texts under way."""
        self.batcher = Batcher(model, threads, observer)
        # With large inputs, fewer rows fill the queue; the bytes of those with free sizes are counted once known.
        most_rows = max(1, min(settings.queue_rows, settings.queue_bytes // model.row_bytes))
        self._queue = Queue(self.batcher, decoders, observer, most_rows, settings.queue_bytes)

    @property
    def bundle(self) -> Bundle:
        """The bundle of the model."""
        return self.model.bundle

    @property
    def queued(self) -> tuple[int, int]:
        """Rows, and their requests, that are decoded or wait for a batch."""
        return self._queue.rows, self._queue.requests

    @property
    def pending(self) -> int:
        """Number of requests that were admitted and are not answered yet."""
        return self._queue.pending + self.texts

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

    def admit(self, deadline: float | None = None) -> Admission:
        """Return a place in the queue for a request, which counts as one row until its number of rows is known.

        Args:
            deadline: Time after which its answer is useless, in seconds of `time.monotonic`.

        Raises:
            NotReadyError: If the model is not loaded.
        """
        self.require_loaded()
        return Admission(self._queue, deadline)

    @contextmanager
    def admit_text(self) -> Iterator[None]:
        """Take one of the places for concurrent texts, and report to the observer how the request ended.

        Raises:
            NotReadyError: If the model is not loaded.
            QueueFullError: If all places are taken.
        """
        self.require_loaded()
        if self.texts >= self._most_texts:
            self.observer.request_failed(QUEUE_FULL, 0.0)
            raise QueueFullError(
                f"Expected room for the text, but {self.texts} of at most {self._most_texts} are under way",
                retry_after_s=1,
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
