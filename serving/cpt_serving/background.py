"""Background tasks that run as long as the server does; a task that ends is logged, counted and restarted."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 30.0


class Background:
    """The background tasks of a server.

    Args:
        restarted: Called with the name of a task that ended and is about to be restarted.
    """

    def __init__(self, restarted: Callable[[str], None]) -> None:
        self._restarted = restarted
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep a task running.

        Args:
            name: Name of the task in the log and the metrics.
            run: Runs forever; called again if it ends or fails.
        """
        self._tasks.append(asyncio.create_task(self._keep(name, run), name=name))

    async def close(self) -> None:
        """Cancel all tasks and wait for them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                await run()
                logger.error("the background task %s ended; it restarts in %.1f s", name, wait_s)
            except Exception:
                logger.exception("the background task %s failed; it restarts in %.1f s", name, wait_s)
            self._restarted(name)
            await asyncio.sleep(wait_s)
            # A task that ran for long had recovered.
            wait_s = _FIRST_WAIT_S if time.monotonic() - began > _LONGEST_WAIT_S else min(2 * wait_s, _LONGEST_WAIT_S)
