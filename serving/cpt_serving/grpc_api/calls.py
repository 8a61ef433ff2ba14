"""Limits on calls: how many there are at once, of each kind, and how long their messages may take."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cpt_serving.web.errors import RequestError

STREAMS_PER_CONNECTION = 100
"""Calls at once on one connection; a client waits with more. HTTP/2 recommends no fewer."""

_MOST_OPEN = 256
"""Calls at once that need no key, streams that watch health, and streams of requests; each kind on its own."""

_IDLE_STREAM_S = 300.0
_UNREAD_S = 30.0
"""As over HTTP: how long a client may leave an answer unread."""


class Places:
    """A limit on calls of one kind, so that calls of another kind are answered when this kind is exhausted.

    Args:
        limit: Maximum number of calls at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self) -> None:
        """Take a place until the current task, which answers the call, ends.

        Raises:
            RequestError: 429 if there is none.
        """
        task = asyncio.current_task()
        if self._taken >= self._limit:
            raise RequestError(
                429, f"Expected at most {self._limit} calls of this kind at once, but got more", {"Retry-After": "1"}
            )
        if task is not None:
            self._taken += 1
            task.add_done_callback(self._give_back)

    def _give_back(self, _task: object) -> None:
        self._taken -= 1


class CallLimits:
    """The limits on all calls.

    Args:
        most_calls: Maximum number of calls at once that are neither open to everyone nor streams.
    """

    def __init__(self, most_calls: int) -> None:
        self.calls = Places(most_calls)
        self.open = Places(_MOST_OPEN)
        self.watches = Places(_MOST_OPEN)
        self.streams = Places(_MOST_OPEN)


async def until_idle(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield the requests of a stream; it ends when none has arrived for some minutes."""
    while True:
        try:
            async with asyncio.timeout(_IDLE_STREAM_S):
                request = await anext(requests, None)
        except TimeoutError:
            return
        if request is None:
            return
        yield request


async def send(context: Any, answer: Any) -> None:
    """Send an answer of a call.

    Raises:
        RequestError: 408 if the client does not read it.
    """
    try:
        async with asyncio.timeout(_UNREAD_S):
            await context.write(answer)
    except TimeoutError:
        raise RequestError(408, f"Expected the answer to be read within {_UNREAD_S:.0f} s") from None


def end_unless_read() -> None:
    """End the current task, which sends the only answer of its call, if the client does not read it."""
    task = asyncio.current_task()
    if task is not None:
        timer = asyncio.get_running_loop().call_later(_UNREAD_S, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())
