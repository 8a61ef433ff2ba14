"""The shutdown of a server: its phases and the one deadline of everything that ends with it."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Shutdown:
    """The two phases of a shutdown.

    First the server drains: readiness fails, all requests are still answered, and clients are asked to go elsewhere.
    Then it stops: nothing new is accepted, and requests in progress may finish until one common deadline.

    Args:
        drain_s: Seconds of the first phase.
        shutdown_s: Seconds of the second phase.
        announce: Called once, at the beginning of the first.
    """

    def __init__(self, drain_s: float, shutdown_s: float, announce: Callable[[], None]) -> None:
        self._drain_s = drain_s
        self._shutdown_s = shutdown_s
        self._announce = announce
        self._deadline = math.inf
        self._stopping = asyncio.Event()
        self.draining = False
        """Whether the shutdown has begun."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, 0 once it has passed; before a shutdown the time that one would have."""
        return max(0.0, min(self._deadline - time.monotonic(), self._shutdown_s))

    def begin(self) -> None:
        """Drain, then stop. Called while draining, stop at once; called while stopping, end the deadline now."""
        if self._stopping.is_set():
            self._deadline = time.monotonic()
        elif self.draining or not self._drain_s:
            self.stop()
        else:
            self._deadline = time.monotonic() + self._drain_s + self._shutdown_s
            self._drain()
            asyncio.get_running_loop().call_later(self._drain_s, self.stop)

    def stop(self) -> None:
        """Stop now, whether or not draining has begun or finished."""
        if not self._stopping.is_set():
            self._deadline = min(self._deadline, time.monotonic() + self._shutdown_s)
            self._drain()
            self._stopping.set()

    async def stopping(self) -> None:
        """Wait until the server stops."""
        await self._stopping.wait()

    def _drain(self) -> None:
        if not self.draining:
            self.draining = True
            self._announce()


async def finished(function: Callable[[], object], seconds: float) -> bool:
    """Call a function that may block, and return whether it returned in time; otherwise it is not waited for.

    Args:
        function: Called in a daemon thread, which does not keep the process alive.
        seconds: Maximum time to wait.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def call() -> None:
        try:
            function()
        except Exception:
            logger.exception("%s failed at the end", function)
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=call, name="closing", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return False
    return True
