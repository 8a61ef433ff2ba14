"""The one end of a server: when it was asked for, and until when everything has to be over."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Shutdown:
    """First the server drains: readiness fails, everything is answered, and clients are asked to leave.

    Then it stops: nothing new is accepted, and what is under way may finish until the deadline, which is one for all.

    Args:
        drain_s: Seconds of the first part.
        shutdown_s: Seconds of the second.
        announce: Called once, at the beginning.
    """

    def __init__(self, drain_s: float, shutdown_s: float, announce: Callable[[], None]) -> None:
        self._drain_s = drain_s
        self._shutdown_s = shutdown_s
        self._announce = announce
        self._deadline = math.inf
        self._stopping = asyncio.Event()
        self.draining = False
        """Whether the end was asked for."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, none once it has passed; without an end the time that one would have."""
        return max(0.0, min(self._deadline - time.monotonic(), self._shutdown_s))

    def begin(self) -> None:
        """Drain, then stop; asked for again, stop at once, and then wait for nothing."""
        if self._stopping.is_set():
            self._deadline = time.monotonic()
        elif self.draining or not self._drain_s:
            self.stop()
        else:
            self._deadline = time.monotonic() + self._drain_s + self._shutdown_s
            self._drain()
            asyncio.get_running_loop().call_later(self._drain_s, self.stop)

    def stop(self) -> None:
        """Stop now, without draining or in the middle of it."""
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
    """Call what may block, and return whether it came back in time; if not, nobody waits for it any more.

    Args:
        function: Called in a thread that does not hold the end of the process.
        seconds: How long to wait.
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
