"""Threads that work for the event loop: some compute, others decode requests."""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar, cast

from cpt_serving.inference.errors import deadline_passed

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AbandonedError(Exception):
    """Nobody waits any more for the result of a thread's work."""


class Work:
    """Handle by which a function in a thread learns that nobody waits for its result any more."""

    __slots__ = ("abandoned",)

    def __init__(self) -> None:
        self.abandoned = False

    def check(self) -> None:
        """End the work if nobody waits for it any more; call it between parts of the work.

        Raises:
            AbandonedError: If nobody waits.
        """
        if self.abandoned:
            raise AbandonedError


class Threads:
    """A fixed number of threads that run jobs in the order of submission.

    Own threads instead of a library's pool: submitting is one put into a queue written in C, returning is one wake-up
    of the event loop, and a waiting task can be cancelled at any time.

    Args:
        count: Number of threads.
        name: Name of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def offer(self, job: Callable[[], None]) -> None:
        """Submit a job to run as soon as a thread is free; the threads start with the first job."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name}-{index}", daemon=True)
                for index in range(self.count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put(job)

    async def run(self, function: Callable[[Work], T], deadline: float | None = None) -> T:
        """Run a function in a thread and return its result. On cancellation or at the deadline, its end is not awaited.

        Args:
            function: Function to run; skipped if nobody waits any more when its turn comes.
            deadline: Time after which its result is useless, in seconds of `time.monotonic`.

        Raises:
            DeadlineExceededError: If the deadline passes first.
        """
        loop, work = asyncio.get_running_loop(), Work()
        answer: asyncio.Future[T] = loop.create_future()
        # Work of a thread for a request is attributed to that request.
        context = contextvars.copy_context()

        def job() -> None:
            if work.abandoned:
                return
            try:
                result = context.run(function, work)
            except AbandonedError:
                return
            except Exception as error:
                # The error belongs to the waiting task, not to this thread.
                loop.call_soon_threadsafe(_complete, answer, None, error)
            else:
                loop.call_soon_threadsafe(_complete, answer, result, None)

        timer = None if deadline is None else loop.call_later(deadline - time.monotonic(), _expire, answer)
        self.offer(job)
        try:
            return await answer
        finally:
            work.abandoned = True
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Stop the threads after the jobs submitted so far, and wait for that."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                # A bug in one job must not end the thread.
                logger.exception("a job of the thread %s failed", threading.current_thread().name)
            # Do not keep a request alive until the next one comes.
            del job


def _complete(answer: "asyncio.Future[T]", result: T | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(cast("T", result))
    else:
        answer.set_exception(error)


def _expire(answer: "asyncio.Future[T]") -> None:
    if not answer.done():
        answer.set_exception(deadline_passed())
