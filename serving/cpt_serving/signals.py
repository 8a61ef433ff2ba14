"""What happens after SIGTERM: readiness fails first, so that traffic goes elsewhere before the port closes."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def announced_shutdown(announce: Callable[[], None], delay_s: float) -> Iterator[None]:
    """Call `announce` at the first SIGTERM and pass the signal on to the web server's own handler after a delay.

    A second SIGTERM is passed on at once. Signals reach only the main thread; elsewhere nothing is changed.

    Args:
        announce: What to do at once.
        delay_s: Seconds until the server begins to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGTERM)
    announced = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(signal.SIGTERM, previous)
            signal.raise_signal(number)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal announced
        if announced or delay_s == 0:
            announce()
            pass_on(number, frame)
            return
        announced = True
        announce()
        loop.call_soon_threadsafe(loop.call_later, delay_s, pass_on, number, None)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
