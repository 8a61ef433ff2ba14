"""Receiving a request's body: not more than allowed, not slower than allowed, and not for a client that has gone."""

import asyncio
import functools
import threading
import time
from contextvars import ContextVar

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from cpt_serving.web.compression import content_codings, decompress
from cpt_serving.web.errors import RequestError

LEAST_BYTES_PER_S = 8192
"""Each `timeout_s` has to bring so many bytes for each of its seconds, or the end of the body."""

INLINE_BYTES = 16 * 1024
"""More bytes than these are decompressed, parsed or compressed in a thread."""

_WATCH_AFTER_S = 0.1
_DECOMPRESSED_AT_ONCE = 2


class BodyBudget:
    """Memory for the bodies of all requests under way, and for what their JSON becomes.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._lock = threading.Lock()
        self.decompressing = asyncio.Semaphore(_DECOMPRESSED_AT_ONCE)
        """Few at once, since how much memory a content takes is known only afterwards."""

    @property
    def taken(self) -> int:
        """Bytes that are in use."""
        return self._taken

    def take(self, size: int) -> None:
        """Use some bytes.

        Raises:
            RequestError: 503 if other requests have them at present.
        """
        with self._lock:
            if self._taken + size <= self.limit:
                self._taken += size
                return
        raise RequestError(
            503,
            "Expected memory for the body, but other requests have it at present",
            {"Retry-After": "1", "Connection": "close"},
        )

    def give_back(self, size: int) -> None:
        """Use some bytes no more."""
        with self._lock:
            self._taken -= size


class RequestBody:
    """The body of one request, and whether its client is still there.

    Args:
        scope: The request's.
        receive: The server's.
        budget: What its memory is taken from.
        timeout_s: Seconds in which the body, or a part of it that is large enough, has to come.
    """

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget, timeout_s: float) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """The headers of the request, the last of each name."""
        self._receive = receive
        self._budget = budget
        self._timeout_s = timeout_s
        self._charged = self._seen = self._window_began = 0
        self._window_ends = 0.0
        self._released = self._receiving = self._too_slow = self._complete = False
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.arrived = time.monotonic()
        """When the head had come."""
        self.completed_at = self.arrived
        """When the last byte had come."""
        self.client_gone = False
        """Whether the request was cancelled because its client closed the connection."""

    def charge(self, size: int) -> None:
        """Take memory until the request is over.

        Raises:
            RequestError: 413 if it is more than there can be, 503 if other requests have it at present.
        """
        if self._released:  # a thread that goes on after its request was cancelled
            return
        if self._charged + size > self._budget.limit:
            raise RequestError(
                413,
                f"Expected a body that takes at most {self._budget.limit} bytes of memory, but got more",
                {"Connection": "close"},
            )
        self._budget.take(size)
        self._charged += size

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body, decompressed.

        Args:
            max_bytes: Largest body, as it comes and decompressed.

        Raises:
            RequestError: 413 by the declared size at once and else while it arrives, 408 if it comes too slowly, 415
                for an unknown `Content-Encoding`, 400 if it does not hold, 503 if there is no memory for the body.
            ClientDisconnect: If the client went away before its end.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes, f"{declared.decode()} bytes")
        coding = self.headers.get(b"content-encoding")
        codings = content_codings(coding.decode("latin-1")) if coding else []
        body = await self._read(max_bytes)
        if codings:
            async with self._budget.decompressing:
                body = await anyio.to_thread.run_sync(functools.partial(decompress, body, codings, limit=max_bytes))
            self.charge(len(body))
        return body

    async def _read(self, max_bytes: int) -> bytes:
        """Return the body as it came."""
        chunks: list[bytes] = []
        loop = asyncio.get_running_loop()
        self._window_ends = loop.time() + self._timeout_s
        # One timer for both: most requests are answered before it is worth a task to see whether their client has left.
        self._timer = loop.call_later(min(_WATCH_AFTER_S, self._timeout_s), self._look)
        more = True
        while more:
            self._receiving = True
            try:
                message = await self._receive()
            except asyncio.CancelledError:
                if not self._too_slow or self._task is None or self._task.uncancel() > 0:
                    raise
                raise RequestError(
                    408,
                    f"Expected the body within {self._timeout_s:.0f} s, but got {self._seen} bytes",
                    {"Connection": "close"},
                ) from None
            finally:
                self._receiving = False
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            self._seen += len(chunk)
            if self._seen > max_bytes:
                raise too_large(max_bytes, "more")
            self.charge(len(chunk))
            chunks.append(chunk)
        self._complete = True
        self.completed_at = time.monotonic()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _look(self) -> None:
        """End a body that is too slow as soon as it is waited for; once it is complete, watch its client."""
        if self._complete:
            self._watcher = asyncio.create_task(self._cancel_when_gone())
            return
        loop = asyncio.get_running_loop()
        if self._seen - self._window_began >= LEAST_BYTES_PER_S * self._timeout_s:
            self._window_began, self._window_ends = self._seen, loop.time() + self._timeout_s
        if self._receiving and loop.time() >= self._window_ends and self._task is not None:
            self._too_slow = True
            self._task.cancel()
        else:
            self._timer = loop.call_later(min(_WATCH_AFTER_S, self._timeout_s), self._look)

    def answered(self) -> None:
        """Stop watching: from now on the client may close the connection."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def release(self) -> None:
        """Give the memory back."""
        self.answered()
        self._released = True
        self._budget.give_back(self._charged)

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.client_gone = True
            self._task.cancel()


current_body: ContextVar[RequestBody | None] = ContextVar("current_body", default=None)
"""The body of the request that the running task or thread answers; `None` outside of requests."""


def charge(size: int) -> None:
    """Take memory for the running request until it is over.

    Raises:
        RequestError: As `RequestBody.charge` says.
    """
    body = current_body.get()
    if body is not None:
        body.charge(size)


def running_body() -> RequestBody:
    """Return the body of the running request.

    Raises:
        RuntimeError: Outside of `RequestEdge`.
    """
    found = current_body.get()
    if found is None:
        raise RuntimeError("Expected a request inside of `RequestEdge`")
    return found


def too_large(limit: int, found: str) -> RequestError:
    """Return the error of a body above its limit."""
    return RequestError(413, f"Expected a body of at most {limit} bytes, but got {found}", {"Connection": "close"})
