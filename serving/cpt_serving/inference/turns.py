"""The turns of a language model's texts: calls that wait and have the same shape are computed together.

The oldest call goes first and takes with it those behind it that fit: as many new tokens, after as many tokens before
them if the state grows. So LSTMs always go together, Transformers when their texts are equally long. Sums of integers
are exact and the rest is computed row by row, so a text is the same, bit by bit, whoever it shares its turns with.
"""

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import LanguageModel, State
from cpt_serving.inference.compute import ComputeThreads
from cpt_serving.inference.observers import InferenceObserver

Outcome = tuple[npt.NDArray[np.float32], State]
"""Logits, float32 (N, T, V), and the state after them."""


@dataclass(slots=True, eq=False)
class _Call:
    tokens: npt.NDArray[np.int64]
    state: State
    shape: Hashable
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Outcome]"


class Turns:
    """The calls of one model that wait. `call` is for the event loop; the rest happens in the compute threads.

    Args:
        model: What computes.
        threads: Where.
        max_rows: Most rows that are computed together.
        max_logits: Most logits that calls make together; one with more goes alone.
        observer: Is told of what was computed.
    """

    def __init__(
        self,
        model: LanguageModel,
        threads: ComputeThreads,
        observer: InferenceObserver,
        *,
        max_rows: int,
        max_logits: int,
    ) -> None:
        self._model, self._threads, self._observer = model, threads, observer
        self._max_rows, self._max_logits = max_rows, max_logits
        self._lock = threading.Lock()
        self._waiting: dict[_Call, None] = {}

    async def call(self, tokens: npt.NDArray[np.int64], state: State | None) -> Outcome:
        """Compute one call. Whoever stops waiting before its turn has come costs nothing.

        Args:
            tokens: int64 (N, T).
            state: What the call before gave; `None` at the beginning.
        """
        manifest, loop = self._model.manifest, asyncio.get_running_loop()
        before = manifest.initial_state(len(tokens)) if state is None else state
        shape = tokens.shape[1], manifest.past_of(before)
        call = _Call(tokens, before, shape, loop, loop.create_future())
        with self._lock:
            self._waiting[call] = None
        self._threads.offer(self._run_next)
        try:
            return await call.answer
        finally:
            with self._lock:
                self._waiting.pop(call, None)

    def _run_next(self) -> None:
        """Compute the oldest call and those that fit, if another thread has not yet. Runs in a compute thread."""
        calls = self._take()
        if not calls:
            return
        started = time.perf_counter()
        outcomes: Sequence[Outcome] | Exception
        try:
            outcomes = self._compute(calls)
        except Exception as error:
            # Whatever goes wrong inside of the model belongs to the requests that asked for it.
            outcomes = error
        seconds = time.perf_counter() - started
        calls[0].loop.call_soon_threadsafe(self._deliver, calls, outcomes, seconds)

    def _take(self) -> list[_Call]:
        taken: list[_Call] = []
        with self._lock:
            first = next(iter(self._waiting), None)
            if first is None:
                return taken
            logits = first.tokens.shape[1] * self._model.manifest.vocabulary
            room = min(self._max_rows, self._max_logits // logits)
            for call in self._waiting:
                rows = len(call.tokens)
                if call is first or (call.shape == first.shape and rows <= room):
                    taken.append(call)
                    room -= rows
            for call in taken:
                del self._waiting[call]
        return taken

    def _compute(self, calls: Sequence[_Call]) -> list[Outcome]:
        if len(calls) == 1:
            return [self._model.run(calls[0].tokens, calls[0].state)]
        manifest = self._model.manifest
        logits, state = self._model.run(
            np.concatenate([call.tokens for call in calls]), manifest.joined([call.state for call in calls])
        )
        outcomes: list[Outcome] = []
        start = 0
        for call in calls:
            rows = slice(start, start + len(call.tokens))
            outcomes.append((logits[rows], manifest.rows_of(state, rows)))
            start = rows.stop
        return outcomes

    def _deliver(self, calls: Sequence[_Call], outcomes: Sequence[Outcome] | Exception, seconds: float) -> None:
        for number, call in enumerate(calls):
            if call.answer.done():
                continue
            if isinstance(outcomes, Exception):
                call.answer.set_exception(outcomes)
            else:
                call.answer.set_result(outcomes[number])
        if not isinstance(outcomes, Exception):
            self._observer.batch_finished(sum(len(call.tokens) for call in calls), seconds)
