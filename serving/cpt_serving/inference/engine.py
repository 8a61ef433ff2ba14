"""One model version behind the routes: loaded beside the event loop, checked before it is ready, run in batches."""

import enum
import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio import CapacityLimiter

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import CptError
from cpt_serving.inference.batching import Batcher, BatchLimits, Inference
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.loading import load_model
from cpt_serving.inference.observers import InferenceObserver
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError
from cpt_serving.web.records import current_record

__all__ = ["Engine", "EngineState", "Inference", "unavailable"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class EngineState(enum.StrEnum):
    """Where a model version is in its life, in the words of the repository extension."""

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


class Engine:
    """One model version in onnxruntime, for use from the event loop.

    An engine that is no longer in the repository still answers the requests that found it there: it lives, model and
    all, as long as one of them holds it.

    Args:
        bundle: The bundle that it serves.
        settings: Threads, batching and checks.
        threads: Where inferences run, shared by the models of the process.
        decoders: Where the contents of requests are read, shared likewise.
        observer: Is told about inferences.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: ServeSettings,
        threads: ComputeThreads,
        decoders: CapacityLimiter,
        observer: InferenceObserver,
    ) -> None:
        self.bundle = bundle
        self.state = EngineState.LOADING
        self.reason = ""
        self._settings = settings
        self._threads = threads
        self._decoders = decoders
        self._observer = observer
        self._batcher: Batcher | None = None

    @property
    def status(self) -> str:
        """Why the engine is in its state, in words."""
        return f"{_MEANING[self.state]}: {self.reason}" if self.reason else _MEANING[self.state]

    @property
    def pending(self) -> int:
        """Requests that wait or are being computed."""
        return 0 if self._batcher is None else self._batcher.pending

    def load_now(self) -> None:
        """Load the model; takes as long as that takes.

        Raises:
            CptError: As `load_model` says.
        """
        limits = BatchLimits(self._settings.max_batch, self._settings.max_delay_ms / 1e3, self._settings.queue_rows)
        model = load_model(self.bundle, self._settings)
        self._batcher = Batcher(model.run, self._threads, limits, self._observer)
        if self.state is EngineState.LOADING:
            self.state = EngineState.READY

    async def load(self) -> None:
        """Load the model beside the event loop; whether that succeeded is `state` afterwards."""
        try:
            await anyio.to_thread.run_sync(self.load_now)
        except CptError as error:
            self.fail(error.message)
        except Exception as error:
            logger.exception("loading %s failed", self.bundle.path)
            self.fail(f"{type(error).__name__}")

    def fail(self, reason: str) -> None:
        """Note why the model could not be loaded."""
        self.state = EngineState.UNAVAILABLE
        self.reason = f"it could not be loaded: {reason}"
        logger.error("%s version %s: %s", self.bundle.name, self.bundle.version, self.status)

    def retire(self, reason: str) -> None:
        """Fail readiness from now on; requests are still answered."""
        self.state = EngineState.UNLOADING
        self.reason = reason

    def require_ready(self) -> None:
        """Raise a 503 unless new traffic should come here."""
        if self.state is not EngineState.READY:
            raise unavailable(self.status)

    async def infer(self, rows: npt.NDArray[np.float32], *, deadline: float | None = None) -> Inference:
        """Compute the logits of the rows of one request, together and in their order.

        Args:
            rows: Normalised inputs, float32 (N, C, H, W).
            deadline: When the answer is of no use any more, in seconds of `time.monotonic`.

        Raises:
            RequestError: 429 if the queue is full, 503 if the model is not loaded, 504 if the deadline passed.
        """
        if self._batcher is None:
            raise unavailable(self.status)
        record = current_record.get()
        if record is None:
            return await self._batcher.submit(rows, deadline)
        record.model, record.version, record.rows = self.bundle.name, self.bundle.version, len(rows)
        record.asked_at = time.monotonic()
        record.inference = inference = await self._batcher.submit(rows, deadline)
        record.computed_at = time.monotonic()
        return inference

    async def decode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on a request's content, which can take long, in a thread.

        Raises:
            RequestError: 429 if the queue is full: nothing is decoded for a request that would be refused then.
        """
        record = current_record.get()
        if record is not None:
            record.model, record.version = self.bundle.name, self.bundle.version
        if self._batcher is not None:
            self._batcher.require_room()
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._decoders)


def unavailable(reason: str) -> RequestError:
    """Return the 503 for a model that cannot be asked now."""
    return RequestError(503, f"Expected a model that is ready, but {reason}", {"Retry-After": "1"})
