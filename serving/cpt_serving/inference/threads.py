"""Threads that work for the event loop: some compute, others read what requests bring."""

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
    """Nobody waits any more for what a thread was doing."""


class Work:
    """What a function in a thread knows of those who wait for it."""

    __slots__ = ("abandoned",)

    def __init__(self) -> None:
        self.abandoned = False

    def check(self) -> None:
        """End the work if nobody waits for it any more; to be called between its parts.

        Raises:
            AbandonedError: In that case.
        """
        if self.abandoned:
            raise AbandonedError


class Threads:
    """A fixed number of threads that run jobs in the order in which they were offered.

    Threads of our own instead of a pool's: handing over is one put into a queue that is written in C, coming back one
    wake-up of the event loop, and who waits can leave at any time.

    Args:
        count: How many jobs run at once.
        name: What the threads are called.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def offer(self, job: Callable[[], None]) -> None:
        """Have a job run as soon as a thread is free; the threads start with the first job."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name}-{index}", daemon=True)
                for index in range(self.count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put(job)

    async def run(self, function: Callable[[Work], T], deadline: float | None = None) -> T:
        """Return what a function returns in a thread. Who leaves, or is late, does not wait for it to notice.

        Args:
            function: What to run; not at all if nobody waits any more when its turn comes.
            deadline: When its result is of no use any more, in seconds of `time.monotonic`.

        Raises:
            DeadlineExceededError: If that comes first.
        """
        loop, work = asyncio.get_running_loop(), Work()
        answer: asyncio.Future[T] = loop.create_future()
        # What a thread does for a request counts as that request's.
        context = contextvars.copy_context()

        def job() -> None:
            if work.abandoned:
                return
            try:
                result = context.run(function, work)
            except AbandonedError:
                return
            except Exception as error:
                # It belongs to whoever asked, not to this thread.
                loop.call_soon_threadsafe(_calibrate, answer, None, error)
            else:
                loop.call_soon_threadsafe(_calibrate, answer, result, None)

        timer = None if deadline is None else loop.call_later(deadline - time.monotonic(), _expire, answer)
        self.offer(job)
        try:
            return await answer
        finally:
            work.abandoned = True
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """End the threads after the jobs that were offered so far, and wait for that."""
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
                # A bug in one job must not take the thread from all that follow.
                logger.exception("a job of the thread %s failed", threading.current_thread().name)
            # Not to keep a request alive until the next one comes.
            del job


def _calibrate(answer: "asyncio.Future[T]", result: T | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(cast("T", result))
    else:
        answer.set_exception(error)


def _expire(answer: "asyncio.Future[T]") -> None:
    if not answer.done():
        answer.set_exception(deadline_passed())
