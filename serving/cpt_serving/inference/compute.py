"""The threads that compute: one for each inference that may run at once, shared by all models of a process."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)


class ComputeThreads:
    """A fixed number of threads that run jobs in the order in which they were offered.

    Threads of our own instead of a pool's: handing over is one put into a queue that is written in C, and coming back
    one wake-up of the event loop for a whole batch.

    Args:
        count: How many jobs run at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def offer(self, job: Callable[[], None]) -> None:
        """Have a job run as soon as a thread is free; the threads start with the first job."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"compute-{index}", daemon=True) for index in range(self.count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put(job)

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
                logger.exception("a job of the compute threads failed")
