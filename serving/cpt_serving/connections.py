"""Connections whose request does not come: the web server has no timeout for the head of a request, this adds one."""

import asyncio
import http
import importlib.util
import uuid
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConfig(uvicorn.Config):
    """uvicorn's configuration, and how long the head of a request may take.

    Args:
        head_timeout_s: Seconds from the opening of a connection, or from the first byte of a further request on it.
        options: What `uvicorn.Config` takes.
    """

    def __init__(self, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(**options, http=_protocol_class())
        self.head_timeout_s = head_timeout_s


class HeadTimeout(asyncio.Protocol):
    """Mixed into a protocol of uvicorn: closes connections whose request's head does not come in time."""

    config: Any
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _head_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give a new connection the time of one head."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; the time of the head is over with the head's last byte."""
        super().data_received(data)
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


class TimedH11Protocol(HeadTimeout, H11Protocol):
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
    """Return the protocol that uvicorn would choose, with the timeout."""
    if importlib.util.find_spec("httptools") is None:
        return TimedH11Protocol
    from cpt_serving.httptools_connections import TimedHttpToolsProtocol

    return TimedHttpToolsProtocol
