"""The model behind the routes: loaded beside the event loop, checked before it is ready, computed in threads."""

import enum
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio import CapacityLimiter

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, decode_image
from cpt_deploy.errors import CptError, ValidationFailedError
from cpt_serving.errors import RequestError
from cpt_serving.examples import example_image
from cpt_serving.metrics import Metrics
from cpt_serving.settings import ServeSettings, available_cores

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class EngineState(enum.Enum):
    """Where an engine is in its life."""

    LOADING = "the model is being loaded"
    READY = "ready"
    FAILED = "the model could not be loaded"
    STOPPING = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class Inference:
    """Logits of a request's rows and what they took.

    Args:
        logits: float32 (N, K).
        queue_ms: Milliseconds that the rows waited for their turn.
        inference_ms: Milliseconds in onnxruntime.
    """

    logits: npt.NDArray[np.float32]
    queue_ms: float
    inference_ms: float


class Engine:
    """One model in onnxruntime, for use from the event loop.

    Args:
        bundle: The bundle that it serves.
        settings: Threads, concurrency and checks.
        metrics: Where inferences are counted.
    """

    def __init__(self, bundle: Bundle, settings: ServeSettings, metrics: Metrics) -> None:
        self.bundle = bundle
        self.state = EngineState.LOADING
        self.failure: str | None = None
        self._settings = settings
        self._metrics = metrics
        self._model: OnnxRuntimeModel | None = None
        self._turns = CapacityLimiter(settings.inferences_at_once)
        self._decoders = CapacityLimiter(available_cores())

    @property
    def status(self) -> str:
        """Why the engine is in its state, in words."""
        return f"{self.state.value}: {self.failure}" if self.failure else self.state.value

    async def load(self) -> None:
        """Load the model; whether that succeeded is `state` afterwards."""
        try:
            model = await anyio.to_thread.run_sync(load_model, self.bundle, self._settings)
        except CptError as error:
            self._fail(error.message)
        except Exception as error:
            logger.exception("loading %s failed", self.bundle.path)
            self._fail(f"{type(error).__name__}")
        else:
            self._model = model
            if self.state is EngineState.LOADING:
                self.state = EngineState.READY

    def begin_shutdown(self) -> None:
        """Fail readiness from now on; requests are still answered."""
        self.state = EngineState.STOPPING

    def require_ready(self) -> None:
        """Raise a 503 unless new traffic should come here."""
        if self.state is not EngineState.READY:
            raise _unavailable(self.status)

    async def infer(self, rows: npt.NDArray[np.float32]) -> Inference:
        """Compute the logits of the rows of one request, together and in their order.

        Args:
            rows: Normalised inputs, float32 (N, C, H, W).

        Raises:
            RequestError: 503, if the model is not loaded.
        """
        if self._model is None:
            raise _unavailable(self.status)
        asked = time.perf_counter()
        async with self._turns:
            started = time.perf_counter()
            # The turn is taken already, so the thread pool's own limit must not add another wait.
            logits = await anyio.to_thread.run_sync(self._model.run, rows, limiter=CapacityLimiter(1))
            finished = time.perf_counter()
        self._metrics.inference_finished(len(rows), started - asked, finished - started)
        return Inference(logits, queue_ms=(started - asked) * 1e3, inference_ms=(finished - started) * 1e3)

    async def decode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on a request's content, which can take long, in a thread."""
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._decoders)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self.state = EngineState.FAILED
        logger.error("not ready: %s", self.status)


def load_model(bundle: Bundle, settings: ServeSettings) -> OnnxRuntimeModel:
    """Load a bundle's model, warm it up and let it reproduce the golden sample.

    Raises:
        BundleError: If onnxruntime cannot load it.
        UsageError: If the execution provider is not available.
        ValidationFailedError: If the golden sample comes out differently.
    """
    model = OnnxRuntimeModel(bundle.onnx_path, threads=settings.threads, provider=settings.provider)
    # Pillow loads its formats at the first image, which should not be a client's.
    model.run(bundle.preprocessing.apply(decode_image(example_image(bundle)))[None])
    if settings.golden == "off":
        return model
    check = model.reproduce_golden(bundle.golden)
    if check.exact or (settings.golden == "labels" and check.same_labels):
        return model
    raise ValidationFailedError(
        f"Expected {bundle.name} to reproduce its golden sample, but {check.mismatches} of {check.values} codes differ "
        f"(by up to {check.worst_codes}) and the top classes {'agree' if check.same_labels else 'differ'}",
        hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
        "the setting golden=labels accepts it",
    )


def _unavailable(reason: str) -> RequestError:
    return RequestError(503, f"Expected a model that is ready, but {reason}", {"Retry-After": "1"})
