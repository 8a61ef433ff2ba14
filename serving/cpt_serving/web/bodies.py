"""Receiving a request's body: not more than allowed, not slower than allowed, and not for a client that has gone."""

import asyncio
import time

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from cpt_serving.web.errors import RequestError
from cpt_serving.web.raw_headers import raw_header

LEAST_BYTES_PER_S = 8192
"""A body may take longer than its timeout by the time that it needs at this rate."""

_WATCH_AFTER_S = 0.1
_LOOK_AGAIN_S = 0.05


class BodyReceiver:
    """What an app receives a request through, in place of the server's own `receive`.

    Args:
        scope: The request.
        receive: The server's.
        max_bytes: Largest body that is read.
        timeout_s: Seconds in which the body has to come, apart from its size.
    """

    def __init__(self, scope: Scope, receive: Receive, *, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._declared = raw_header(scope, b"content-length") or ""
        self._started = time.monotonic()
        self._timeout_s = timeout_s
        self._seen = 0
        self._complete = False
        self._receiving = self._too_slow = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.completed_at = self._started
        """When the last byte had come, in seconds of `time.monotonic`."""
        self.client_gone = False
        """Whether the request was cancelled because its client closed the connection."""

    async def __call__(self) -> Message:
        """Return the next part of the body.

        Raises:
            RequestError: 413 by the declared size at once and else while it arrives, 408 if it comes too slowly.
        """
        if self._declared.isdecimal() and int(self._declared) > self._max_bytes:
            raise _too_large(self._max_bytes, f"{self._declared} bytes")
        if self._complete:
            return await self._receive()
        if self._timer is None:
            self._check_pace()
        self._receiving = True
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._too_slow or self._task is None or self._task.uncancel() > 0:
                raise
            raise RequestError(
                408,
                f"Expected the body within {self._allowed_s:.0f} s, but got {self._seen} bytes",
                {"Connection": "close"},
            ) from None
        finally:
            self._receiving = False
        self._seen += len(message.get("body", b""))
        if self._seen > self._max_bytes:
            raise _too_large(self._max_bytes, "more")
        if not message.get("more_body", False):
            self._complete = True
            self.completed_at = time.monotonic()
            self.answered()
            # Most requests are answered before it is worth a task of its own to see whether their client has left.
            self._timer = self._loop.call_later(_WATCH_AFTER_S, self._watch)
        return message

    def answered(self) -> None:
        """Stop watching: from now on the client may close the connection."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    @property
    def _allowed_s(self) -> float:
        return self._timeout_s + self._seen / LEAST_BYTES_PER_S

    def _check_pace(self) -> None:
        """Look again when the body would be late; if it is, end the request as soon as it waits for the body."""
        self._timer = None
        left = self._started + self._allowed_s - time.monotonic()
        if left > 0 or not self._receiving:
            self._timer = self._loop.call_later(max(left, _LOOK_AGAIN_S), self._check_pace)
        elif self._task is not None:
            self._too_slow = True
            self._task.cancel()

    def _watch(self) -> None:
        self._watcher = asyncio.create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.client_gone = True
            self._task.cancel()


def _too_large(limit: int, found: str) -> RequestError:
    return RequestError(413, f"Expected a body of at most {limit} bytes, but got {found}", {"Connection": "close"})


async def read_body(receive: Receive) -> bytes:
    """Return the whole body of a request.

    Raises:
        ClientDisconnect: If the client went away before its end.
    """
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
