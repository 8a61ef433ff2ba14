"""Heads of requests that do not come, or do not end: the web server has no limits for them, this adds two."""

import asyncio
import gc
import http
import importlib.util
import uuid
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_END_OF_HEAD = b"\r\n\r\n"


class TimedConfig(uvicorn.Config):
    """uvicorn's configuration, and how long and how large the head of a request may be.

    Args:
        head_timeout_s: Seconds from the opening of a connection, or from the first byte of a further request on it.
        max_head_bytes: Most bytes of one head.
        options: What `uvicorn.Config` takes.
    """

    def __init__(self, *, head_timeout_s: float, max_head_bytes: int, **options: Any) -> None:
        super().__init__(**options, http=_protocol_class())
        self.head_timeout_s = head_timeout_s
        self.max_head_bytes = max_head_bytes

    def load(self) -> None:
        """Make the app, and spare the garbage collector all that is there before the first request: it stays."""
        super().load()
        gc.collect()
        gc.freeze()


class HeadLimits(asyncio.Protocol):
    """Mixed into a protocol of uvicorn: closes connections whose request's head comes too late or is too large."""

    config: Any
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _head_begun = False
    _head_bytes = 0
    _head_tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give a new connection the time of one head."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; the time of the head is over with the head's last byte."""
        before = self.cycle
        if self._in_head() and self._head_too_large(data):
            self._refuse(431, f"Expected a request's head of at most {self.config.max_head_bytes} bytes, but got more")
            return
        super().data_received(data)
        if self.cycle is not before:
            self._head_bytes, self._head_tail = 0, b""
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_begun = False
            self._stop_timer()
        else:
            self._head_begun = True
            if self._timer is None:
                self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form that every error has; uvicorn's own is plain text."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_answer(400, f"Expected a request in HTTP/1.1, but got another: {msg}"))
        self.transport.close()

    def _in_head(self) -> bool:
        """Return whether what comes next belongs to a head: no request has begun, or the last one's body is there."""
        return self.cycle is None or self.cycle.response_complete or not self.cycle.more_body

    def _head_too_large(self, data: bytes) -> bool:
        """Count bytes of a head; what follows its end, in the same piece, does not count."""
        room = self.config.max_head_bytes - self._head_bytes
        if len(data) > room and _END_OF_HEAD not in self._head_tail + data[: max(room, 0)]:
            return True
        self._head_bytes += len(data)
        self._head_tail = data[-(len(_END_OF_HEAD) - 1) :]
        return False

    def _refuse(self, status: int, message: str) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_answer(status, message))
            self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.config.head_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self._head_begun:
                self.transport.write(_answer(408, "Expected the head of a request in time, but got a part of it"))
            self.transport.close()


class TimedH11Protocol(HeadLimits, H11Protocol):
    """The protocol in Python."""


def _answer(status: int, message: str) -> bytes:
    """Return an answer on the last line of defence, where there is no request yet that an app could answer."""
    body = orjson.dumps({"error": message, "request_id": uuid.uuid4().hex})
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _protocol_class() -> type[asyncio.Protocol]:
    """Return the protocol that uvicorn would choose, with the limits."""
    if importlib.util.find_spec("httptools") is None:
        return TimedH11Protocol
    from cpt_serving.web.httptools_connections import TimedHttpToolsProtocol

    return TimedHttpToolsProtocol
