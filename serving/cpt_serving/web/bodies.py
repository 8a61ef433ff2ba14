"""Receiving the body of a request, with limits on its size and time, and detecting that its client has left."""

import asyncio
import functools
import threading
import time
from contextvars import ContextVar

import anyio.to_thread
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from cpt_serving.web.compression import content_coding, decompress
from cpt_serving.web.errors import RequestError

LEAST_BYTES_PER_S = 8192
"""Minimum rate in bytes per second, checked once per `timeout_s` until the body is complete."""

INLINE_BYTES = 16 * 1024
"""Larger bodies are decompressed, parsed or compressed in a thread."""

_LOOK_EVERY_S = 0.1
_DECOMPRESSED_AT_ONCE = 2


class BodyBudget:
    """Memory for the bodies of all requests in progress, and for the objects parsed from their JSON.

    Args:
        limit: Size in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._lock = threading.Lock()
        self._watched: set[RequestBody] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.decompressing = asyncio.Semaphore(_DECOMPRESSED_AT_ONCE)
        """Limits concurrent decompression, because the memory of the content is only known afterwards."""

    @property
    def taken(self) -> int:
        """Bytes in use."""
        return self._taken

    def take(self, size: int) -> None:
        """Reserve some bytes.

        Raises:
            RequestError: 503 if other requests use them at present.
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
        """Release some bytes."""
        with self._lock:
            self._taken -= size

    def watch(self, body: "RequestBody") -> None:
        """Let a body look at its pace and its client from time to time, until it is answered.

        One timer serves all bodies: most requests are answered before they are looked at.
        """
        self._watched.add(body)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def unwatch(self, body: "RequestBody") -> None:
        """Let an answered body look no more."""
        self._watched.discard(body)

    def _look(self) -> None:
        self._timer = None
        for body in list(self._watched):
            body.look()
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)


class MemoryShare:
    """The memory of the budget that one request holds.

    Args:
        budget: The budget.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._charged = 0
        self._released = False

    def charge(self, size: int) -> None:
        """Reserve memory until the request is over.

        Raises:
            RequestError: 413 if it is more than the whole budget, 503 if other requests use it at present.
        """
        if self._released:  # a thread that continues after its request was cancelled
            return
        if self._charged + size > self._budget.limit:
            raise RequestError(
                413,
                f"Expected a body that takes at most {self._budget.limit} bytes of memory, but got more",
                {"Connection": "close"},
            )
        self._budget.take(size)
        self._charged += size

    def release(self) -> None:
        """Release the memory, because the request is over."""
        self._released = True
        self._budget.give_back(self._charged)


class RequestBody(MemoryShare):
    """The body of one request, and whether its client is still connected.

    Args:
        scope: ASGI scope of the request.
        receive: ASGI `receive` of the server.
        budget: Budget that the memory is taken from.
        timeout_s: Seconds in which the body, or a large enough part of it, must arrive.
    """

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget, timeout_s: float) -> None:
        super().__init__(budget)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Headers of the request; of several with one name the last."""
        self._receive = receive
        self._timeout_s = timeout_s
        self._seen = self._window_began = 0
        self._window_ends = 0.0
        self._receiving = self._too_slow = self._complete = False
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.arrived = time.monotonic()
        """Time at which the head was complete."""
        self.completed_at = self.arrived
        """Time at which the last byte had arrived."""
        self.client_gone = False
        """Whether the request was cancelled because its client closed the connection."""

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body, decompressed.

        Args:
            max_bytes: Maximum size of the body, both as received and decompressed.

        Raises:
            RequestError: 413 for a too large body, by its declared size if it has one, else as it arrives; 408 if it
                arrives too slowly; 415 for an unknown `Content-Encoding`, or several; 400 if it cannot be decompressed;
                503 if there is no memory for it.
            ClientDisconnect: If the client disconnected before its end.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes, f"{declared.decode()} bytes")
        coding = content_coding(self.headers.get(b"content-encoding", b"").decode("latin-1"))
        chunks: list[bytes] = []
        self._window_ends = time.monotonic() + self._timeout_s
        self._budget.watch(self)
        more = True
        while more:
            message = await self._next_message()
            chunk, more = message.get("body", b""), message.get("more_body", False)
            self._seen += len(chunk)
            if self._seen > max_bytes:
                raise too_large(max_bytes, "more")
            self.charge(len(chunk))
            chunks.append(chunk)
        self.completed_at = time.monotonic()
        self._complete = True
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if coding is not None:
            async with self._budget.decompressing:
                body = await anyio.to_thread.run_sync(functools.partial(decompress, body, coding, limit=max_bytes))
            self.charge(len(body))
        return body

    async def _next_message(self) -> Message:
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
        return message

    def look(self) -> None:
        """Abort a body that arrives too slowly; once it is complete, watch its client for a disconnect."""
        now = time.monotonic()
        if self._complete:
            if self._watcher is None and now - self.completed_at >= _LOOK_EVERY_S:
                self._watcher = asyncio.create_task(self._cancel_when_gone())
            return
        if self._seen - self._window_began >= LEAST_BYTES_PER_S * self._timeout_s:
            self._window_began, self._window_ends = self._seen, now + self._timeout_s
        if self._receiving and now >= self._window_ends and self._task is not None:
            self._too_slow = True
            self._task.cancel()

    def answered(self) -> None:
        """Stop watching: from now on the client may close the connection."""
        self._budget.unwatch(self)
        if self._watcher is not None:
            self._watcher.cancel()

    def release(self) -> None:
        """Stop watching, and release the memory."""
        self.answered()
        super().release()

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.client_gone = True
            self._task.cancel()


current_body: ContextVar[RequestBody | None] = ContextVar("current_body", default=None)
"""The body of the request that the current task or thread answers; `None` outside of requests."""


current_message: ContextVar[MemoryShare | None] = ContextVar("current_message", default=None)
"""The memory of the gRPC message that the current task or thread answers."""


def charge(size: int) -> None:
    """Reserve memory for the current request until it is over.

    Raises:
        RequestError: Like `MemoryShare.charge`.
    """
    share = current_message.get() or current_body.get()
    if share is not None:
        share.charge(size)


def running_body() -> RequestBody:
    """Return the body of the current request.

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
