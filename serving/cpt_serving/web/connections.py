"""Open connections: how many there are, how long one may take to say what it wants, and how they end.

All of it is asyncio's own interface, put around the web server's protocol: nothing here knows how that parses HTTP.
"""

import asyncio
import http
import uuid
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, cast

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HALF_CLOSED_S = 1.0
"""How long a client is answered that has closed its side: one that only sends no more cannot be told from one that is
gone, for which nothing should be computed."""
_REFUSED_S = 1.0
_CLOSE = (b"connection", b"close")

_current: ContextVar["_Connection | None"] = ContextVar("_current", default=None)


class HttpProtocol(asyncio.Protocol):
    """What is asked of the web server's protocol beside asyncio's interface."""

    def shutdown(self) -> None:
        """Close the connection, now or after the answer that is under way."""


class Connections:
    """The connections of a server.

    Args:
        limit: How many may be open; who comes on top is answered 503.
        head_timeout_s: Seconds from the opening of a connection, or from the first byte of a further request on it,
            until the head of the request has to be there.
        refused: Called for each connection that is refused.
    """

    def __init__(self, *, limit: int, head_timeout_s: float, refused: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self.head_timeout_s = head_timeout_s
        self.refused = refused
        self.draining = False
        """Whether answers ask clients to go elsewhere with their next request."""
        self.open: set[_Connection] = set()

    def around(self, protocol: Callable[..., HttpProtocol]) -> Callable[..., asyncio.Protocol]:
        """Return what makes the protocol of a connection, with the limits around it."""

        def make(*arguments: Any, **options: Any) -> asyncio.Protocol:
            return _Connection(self, protocol(*arguments, **options))

        return make

    def around_app(self, app: ASGIApp) -> ASGIApp:
        """Return an app that tells its connection which requests are under way."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            connection = _current.get()
            if scope["type"] != "http" or connection is None:
                await app(scope, receive, send)
                return

            async def send_closing(message: Message) -> None:
                if self.draining and message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), _CLOSE]
                await send(message)

            connection.request_begun()
            try:
                await app(scope, receive, send_closing)
            finally:
                connection.request_ended()

        return counted

    def cut(self, *, all_of_them: bool) -> None:
        """End connections without a goodbye: those without a request under way, or all."""
        for connection in list(self.open):
            if all_of_them or not connection.requests:
                connection.abort()


class _Connection(asyncio.Protocol):
    """One connection; passes everything on to the web server's protocol."""

    def __init__(self, connections: Connections, inner: HttpProtocol) -> None:
        self.requests = 0
        self._connections = connections
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._head_begun = False
        self._half_closed = self._refused = False
        # The tasks in which the web server calls the app copy it, and so know their connection.
        self._context = copy_context()
        self._context.run(_current.set, self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections.open) >= self._connections.limit:
            self._refuse()
            return
        self._connections.open.add(self)
        self._start(self._connections.head_timeout_s, self._give_up)
        self._inner.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._transport.close()
        if not self.requests:
            self._head_begun = True
            if self._timer is None:
                self._start(self._connections.head_timeout_s, self._give_up)
        self._context.run(self._inner.data_received, data)

    def eof_received(self) -> bool | None:
        if self._transport.get_extra_info("sslcontext") is not None:  # TLS has no half-closed connections
            return self._inner.eof_received()
        self._half_closed = True
        self._inner.shutdown()
        self._stop()
        self._start(_HALF_CLOSED_S, self._transport.close)
        return True

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._connections.open.discard(self)
        self._inner.connection_lost(exc)

    def request_begun(self) -> None:
        """Note that the head of a request is there."""
        self.requests += 1
        self._head_begun = False
        if not self._half_closed:
            self._stop()

    def request_ended(self) -> None:
        """Note that a request is answered."""
        self.requests -= 1

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _refuse(self) -> None:
        self._inner, self._refused = HttpProtocol(), True
        self._connections.refused()
        self._transport.write(_answer(503, "Expected fewer open connections, but there are too many", "Retry-After: 1"))
        # Not closed before the request was read, or the system throws the answer away with it.
        self._start(_REFUSED_S, self._transport.close)

    def _give_up(self) -> None:
        self._timer = None
        if not self._transport.is_closing():
            if self._head_begun:
                self._transport.write(_answer(408, "Expected the head of a request in time, but got a part of it"))
            self._transport.close()

    def _start(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _answer(status: int, message: str, *headers: str) -> bytes:
    """Return an answer where there is no request yet that an app could answer."""
    body = orjson.dumps({"error": message, "request_id": uuid.uuid4().hex})
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
