"""One language model behind the routes: each text a chain of calls that take turns with those of other texts."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio import CapacityLimiter

from cpt_deploy.bundle.language import LanguageBundle, State
from cpt_serving.inference.batching import CANCELLED, DEADLINE, ERROR, QUEUE_FULL
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.generation_observers import GenerationObserver
from cpt_serving.inference.lifecycle import ModelEngine, unavailable
from cpt_serving.inference.loading import load_language_model
from cpt_serving.inference.observers import InferenceObserver
from cpt_serving.inference.turns import Turns
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.records import current_record

P = ParamSpec("P")
T = TypeVar("T")

Logits = npt.NDArray[np.float32]

_LOGITS_AT_ONCE = 4_000_000
"""Most logits that one call makes, so that a long text with a large vocabulary needs little memory, and others wait
little for their turn."""


class LanguageEngine(ModelEngine):
    """One version of a language model in onnxruntime, for use from the event loop.

    Args:
        bundle: The bundle that it serves.
        settings: Threads, limits and checks.
        threads: Where the model computes, shared by the models of the process.
        decoders: Where texts become tokens, shared likewise.
        observer: Is told about requests and calls.
        texts: Is told about tokens.
    """

    bundle: LanguageBundle

    def __init__(
        self,
        bundle: LanguageBundle,
        settings: ServeSettings,
        threads: ComputeThreads,
        decoders: CapacityLimiter,
        observer: InferenceObserver,
        texts: GenerationObserver,
    ) -> None:
        super().__init__(bundle)
        self.texts = texts
        self._settings = settings
        self._threads = threads
        self._decoders = decoders
        self._observer = observer
        self._turns: Turns | None = None
        self._active = 0

    @property
    def pending(self) -> int:
        """Texts that are being worked on."""
        return self._active

    @property
    def chunk(self) -> int:
        """How many tokens of a text one call reads."""
        return max(1, min(128, _LOGITS_AT_ONCE // self.bundle.manifest.vocabulary))

    @property
    def longest_prompt(self) -> int:
        """How many tokens a text may have that a client brings."""
        context = self.bundle.manifest.context
        return self._settings.max_prompt_tokens if context is None else min(context, self._settings.max_prompt_tokens)

    def load_now(self) -> None:
        """Load the model; takes as long as that takes.

        Raises:
            CptError: As `load_language_model` says.
        """
        self._turns = Turns(
            load_language_model(self.bundle, self._settings),
            self._threads,
            self._observer,
            max_rows=self._settings.max_batch,
            max_logits=_LOGITS_AT_ONCE,
        )
        self.loaded()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Take one of the places of texts that are worked on at once, and tell the observers how it ended.

        Raises:
            RequestError: 503 if the model is not loaded, 429 if all places are taken.
        """
        if self._turns is None:
            raise unavailable(self.status)
        if self._active >= self._settings.generations:
            self._observer.request_failed(QUEUE_FULL, 0.0)
            raise RequestError(
                429,
                f"Expected room for the text, but {self._active} of at most {self._settings.generations} are under way",
                {"Retry-After": "1"},
            )
        record = current_record.get()
        if record is not None:
            record.model, record.version, record.rows = self.bundle.name, self.bundle.version, 1
        started = time.monotonic()
        self._change(+1)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self._observer.request_failed(CANCELLED, time.monotonic() - started)
            raise
        except Exception as error:
            late = isinstance(error, RequestError) and error.status == 504
            if late or not isinstance(error, RequestError):
                self._observer.request_failed(DEADLINE if late else ERROR, time.monotonic() - started)
            raise
        else:
            self._observer.request_finished(1, 0.0, time.monotonic() - started)
        finally:
            self._change(-1)

    async def encode(self, text: str) -> list[int]:
        """Return the tokens of a client's text, in a thread.

        Raises:
            RequestError: 400 if it is longer than may be.
        """
        tokens = await self.decode(self.bundle.text.encode, text)
        if len(tokens) > self.longest_prompt:
            raise bad_request(
                f"Expected a text of at most {self.longest_prompt} tokens, the "
                f"{'context of the model' if self.longest_prompt == self.bundle.manifest.context else 'limit here'}, "
                f"but got {len(tokens)}"
            )
        return tokens

    async def decode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on a request's content, which can take long, in a thread."""
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._decoders)

    async def infer(
        self, tokens: npt.NDArray[np.int64], state: State, *, deadline: float | None = None
    ) -> tuple[Logits, State]:
        """Compute one call for a client that keeps the state itself, in one of the places.

        Args:
            tokens: int64 (N, T).
            state: What the call before gave, or the one before the first token.
            deadline: When the answer is of no use any more, in seconds of `time.monotonic`.

        Raises:
            RequestError: 400 for more tokens than a text may have, 429 if all places are taken, 503 if the model is not
                loaded, 504 if the deadline passed.
        """
        if tokens.shape[1] > self.longest_prompt:
            raise bad_request(f"Expected at most {self.longest_prompt} tokens, but got {tokens.shape[1]}")
        async with self.working():
            return await self.run(tokens, state, deadline)

    async def run(
        self, tokens: npt.NDArray[np.int64], state: State | None, deadline: float | None
    ) -> tuple[Logits, State]:
        """Compute one call of the model when its turn has come, together with others of the same shape.

        Args:
            tokens: int64 (N, T).
            state: What the call before gave; `None` at the beginning.
            deadline: When the answer is of no use any more, in seconds of `time.monotonic`.

        Raises:
            RequestError: 503 if the model is not loaded, 504 if the deadline passed.
        """
        if self._turns is None:
            raise unavailable(self.status)
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return await self._turns.call(tokens, state)
        except TimeoutError as error:
            raise RequestError(504, "Expected an answer before the request's deadline, but it passed") from error

    def _change(self, by: int) -> None:
        self._active += by
        self.texts.texts_changed(self._active)
