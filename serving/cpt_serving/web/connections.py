"""Open connections: limits on their number, on the size and time of a request's head, and how they are closed.

httptools parses HTTP inside of uvicorn's protocol. It is strict about where a request ends, but leaves gaps that no
middleware can close, since they come before the app is called: heads and trailers of unlimited size, trailers that
become headers, bodies that are lost after an offer to upgrade, and no answer to a client that has closed its side.
uvicorn has no settings for them, its protocol for h11 costs a sixth of the requests per second, and other servers have
gaps of their own (docs/benchmarks/serving.md). Therefore uvicorn's protocol is extended here.
"""

import asyncio
import http
import itertools
import uuid
from collections.abc import Callable
from typing import Any, cast

import orjson
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HALF_CLOSED_S = 1.0
"""How long a client is still answered after it has closed its side: a client that only stopped sending cannot be told
from one that is gone, for which nothing should be computed."""
_REFUSED_S = 1.0
_STALLED_S = 30.0
"""Time in which a client must read the part of an answer that is buffered, at most 128 KiB: an answer counts in the
memory of all requests until it has been sent."""
_REFUSED_AT_ONCE = 16
"""Connections that are told why they are refused; more are only closed, so that they take no files from others."""
_VERSIONS = ("1.0", "1.1")


class Connections:
    """The connections of a server.

    Args:
        limit: Maximum open connections; a client beyond is answered 503.
        max_head_bytes: Maximum bytes of the head of a request, and of its trailers.
        head_timeout_s: Seconds from the opening of a connection, or from the first byte of a further request on it,
            until the head of the request must be complete.
        refused: Called for each connection that is refused.
    """

    def __init__(
        self,
        *,
        limit: int,
        max_head_bytes: int,
        head_timeout_s: float,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self.max_head_bytes = max_head_bytes
        self.head_timeout_s = head_timeout_s
        self.refused = refused
        self.draining = False
        self.open: set[_Connection] = set()
        self.shaking: set[asyncio.Task[None]] = set()
        """Connections whose TLS handshake is not complete."""
        self.being_refused = 0

    @property
    def full(self) -> bool:
        """Whether there are as many connections as allowed."""
        return len(self.open) + len(self.shaking) >= self.limit

    def protocol(self, **options: Any) -> asyncio.Protocol:
        """Return the protocol of a new connection; takes uvicorn's arguments of a protocol."""
        return _Connection(self, **options)

    def drain(self) -> None:
        """From now on, send `Connection: close` with answers, so that clients open their next connection elsewhere."""
        self.draining = True
        for connection in self.open:
            if connection.busy:
                connection.cycle.keep_alive = False

    def cut(self, *, all_of_them: bool) -> None:
        """Abort connections without a closing handshake: those without a request in progress, or all."""
        for connection in list(self.open):
            if all_of_them or not connection.busy:
                connection.transport.abort()
        for handshake in list(self.shaking):
            handshake.cancel()


class _Connection(HttpToolsProtocol):
    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self._opened_at = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._refused = self._ended = self._in_body = False
        self._unread_bytes = 0
        """Bytes that the parser has not turned into anything yet: of a head, of trailers, of a chunk's header."""

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        if len(self._all.open) >= self._all.limit:
            self._refused, self.transport = True, transport
            self._all.refused()
            self._all.being_refused += 1
            if self._all.being_refused > _REFUSED_AT_ONCE:
                transport.abort()
                return
            transport.write(_answer(503, "Expected fewer open connections, but there are too many", "Retry-After: 1"))
            # Closed only after the request was read: closing earlier resets the connection, and the answer is lost.
            self._start(_REFUSED_S, transport.close)
            return
        self._all.open.add(self)
        super().connection_made(transport)
        self._answers = _Joined(transport, self.loop, self._close)
        self._start(self._opened_at + self._all.head_timeout_s - self.loop.time(), self._give_up)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_again()

    def _read_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._read_again()
        self._all.being_refused -= self._refused
        self._all.open.discard(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        if self._ended or self.scheme != "http":  # TLS has no half-closed connections
            return None
        self.shutdown()
        self._stop()
        self._start(_HALF_CLOSED_S, self.transport.close)
        return True

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._refused:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self._unread_bytes += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except HttpParserUpgrade as offer:
                    data = self._head_without_offer() + data[offer.args[0] :]
            if self._unread_bytes > self._all.max_head_bytes:
                raise HttpParserError("a part of it is too large")
        except HttpParserError as error:
            self.send_400_response(str(error.__context__ or error))
        if self._timer is None and not self.busy:
            self._start(self._all.head_timeout_s, self._give_up)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise HttpParserError("this server is not a proxy")
            return
        self._check_head()
        super().on_headers_complete()
        self._in_body, self._unread_bytes = True, 0
        self._stop()
        self.headers = []  # The app has its own list; trailers go to this one and are ignored.
        self.cycle.transport = cast("asyncio.Transport", self._answers)
        if self._all.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_body, self._unread_bytes = False, 0
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._in_body:
            unanswered = self.busy and not self.cycle.response_started and not self.pipeline
        else:
            unanswered = not self.busy
        if unanswered:
            self.transport.write(_answer(400, f"Expected a request in HTTP/1.1, but got another: {msg:.200}"))
        if unanswered and not self._in_body:
            self._end()
        elif self._in_body:
            self.transport.close()
        else:  # Earlier requests are answered first.
            self.shutdown()

    def _close(self) -> None:
        """Close the connection after an answer; later if the client is still sending the request."""
        if self._in_body:
            self._end()
        else:
            self.transport.close()

    def _end(self) -> None:
        """Close the connection in a moment: closing it while the client still sends resets it, and loses the answer."""
        self._ended = True
        self.flow.resume_reading()  # what arrives is dropped
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop()
        self._start(_REFUSED_S, self.transport.close)

    def _check_head(self) -> None:
        """Refuse a head that is too large, or that other servers might interpret differently (request smuggling)."""
        version = self.parser.get_http_version()
        hosts = 0
        for index, (name, value) in enumerate(self.headers):
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                raise HttpParserError("a Transfer-Encoding other than chunked")
            if value[-1:].isspace():
                self.headers[index] = (name, value.rstrip())
        most = self._all.max_head_bytes
        if self._unread_bytes > most and len(self.url) + sum(map(len, itertools.chain(*self.headers))) > most:
            raise HttpParserError("its head is too large")
        if version not in _VERSIONS or hosts > 1 or (not hosts and version == "1.1"):
            raise HttpParserError(f"HTTP/{version} with {hosts} headers Host")

    def _head_without_offer(self) -> bytes:
        """Return the parsed head without its offer to upgrade, and reset the parser to read it and the rest again."""
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"\r\n".join([first, *lines, b"", b""])

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self._unread_bytes and not self._in_body:
                self.transport.write(_answer(408, "Expected the head of a request in time, but got a part of it"))
            self.transport.close()

    def _start(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = self.loop.call_later(seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Joined:
    """The part of a transport that uvicorn's answers use; sends head and beginning of a body in one packet."""

    __slots__ = ("_close", "_head", "_loop", "_transport", "is_closing")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close: Callable[[], None]
    ) -> None:
        self._transport, self._loop, self._close = transport, loop, close
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self.is_closing():  # the client left, and the answer has nowhere to go
            self._head = b""
        elif self._head:
            self._transport.write(b"".join((self._head, data)))
            self._head = b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)  # if the body follows later
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._close()

    def _flush(self) -> None:
        if self._head and not self.is_closing():
            self._transport.write(self._head)
        self._head = b""


def _answer(status: int, message: str, *headers: str) -> bytes:
    """Return an answer as bytes, for a connection without a request that the app could answer."""
    body = orjson.dumps({"error": message, "request_id": uuid.uuid4().hex})
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
