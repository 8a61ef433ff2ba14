"""Connections whose request does not come: the web server has no timeout for the head of a request, this adds one."""

import asyncio
import importlib.util
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 69\r\n\r\n"
    b'{"error":"Expected the head of a request in time, but it is missing"}'
)


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
                self.transport.write(_ANSWER)
            self.transport.close()


class TimedH11Protocol(HeadTimeout, H11Protocol):
    """The protocol in Python."""


def _protocol_class() -> type[asyncio.Protocol]:
    """Return the protocol that uvicorn would choose, with the timeout."""
    if importlib.util.find_spec("httptools") is None:
        return TimedH11Protocol
    from cpt_serving.httptools_connections import TimedHttpToolsProtocol

    return TimedHttpToolsProtocol
