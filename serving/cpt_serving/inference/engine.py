"""One model version behind the routes: loaded beside the event loop, checked before it is ready, run in batches."""

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio import CapacityLimiter

from cpt_deploy.bundle import Bundle
from cpt_serving.inference.batching import Batcher, BatchLimits, Inference
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.lifecycle import EngineState, ModelEngine, unavailable
from cpt_serving.inference.loading import load_model
from cpt_serving.inference.observers import InferenceObserver
from cpt_serving.settings import ServeSettings
from cpt_serving.web.records import current_record

__all__ = ["Engine", "EngineState", "Inference", "unavailable"]

P = ParamSpec("P")
T = TypeVar("T")


class Engine(ModelEngine):
    """One version of an image classifier in onnxruntime, for use from the event loop.

    Args:
        bundle: The bundle that it serves.
        settings: Threads, batching and checks.
        threads: Where inferences run, shared by the models of the process.
        decoders: Where the contents of requests are read, shared likewise.
        observer: Is told about inferences.
    """

    bundle: Bundle

    def __init__(
        self,
        bundle: Bundle,
        settings: ServeSettings,
        threads: ComputeThreads,
        decoders: CapacityLimiter,
        observer: InferenceObserver,
    ) -> None:
        super().__init__(bundle)
        self._settings = settings
        self._threads = threads
        self._decoders = decoders
        self._observer = observer
        self._batcher: Batcher | None = None

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
        self.loaded()

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
