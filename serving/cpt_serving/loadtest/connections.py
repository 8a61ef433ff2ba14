"""One client: a kept connection that sends the request again as soon as its answer is there.

Callbacks instead of tasks and a parser in C, so that what is measured is the server.
"""

import asyncio
import contextlib
import ssl
import time
from typing import cast

import httptools
import orjson

from cpt_serving.loadtest.requests import PreparedRequest
from cpt_serving.loadtest.results import Recorder

_LONGEST_MESSAGE = 4096
_PAUSE_S = 0.05


class Client(asyncio.Protocol):
    """One of the clients of a load test; `run` keeps it connected.

    Args:
        request: What it sends.
        recorder: Where it tells what came back.
        timeout_s: Seconds after which an answer counts as missing.
    """

    def __init__(self, request: PreparedRequest, recorder: Recorder, timeout_s: float) -> None:
        self._request = request
        self._recorder = recorder
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._closed = asyncio.Event()
        self._sent_at: float | None = None
        self._body = b""

    async def run(self) -> None:
        """Ask until the recorder has enough, connecting anew where the server hangs up."""
        url = self._request.url
        context = ssl.create_default_context() if url.scheme == "https" else None
        loop = asyncio.get_running_loop()
        while not self._recorder.stopped:
            self._closed.clear()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await loop.create_connection(lambda: self, url.host.strip("[]"), self._request.port, ssl=context)
            except (OSError, TimeoutError) as error:
                self._recorder.failed("no connection", str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                await self._closed.wait()
            finally:
                self.close()

    def close(self) -> None:
        """Hang up; a request under way is forgotten."""
        self._sent_at = None
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Give up a request that waits for too long.

        Args:
            now: `time.perf_counter()`.
        """
        if self._sent_at is not None and now - self._sent_at > self._timeout_s:
            self._recorder.failed("no answer in time")
            self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are of classes of their own.
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the request that was under way, if the server hung up on it."""
        if self._sent_at is not None:
            self._recorder.failed("connection closed", str(exc or ""))
        self._sent_at = None
        self._closed.set()

    def data_received(self, data: bytes) -> None:
        """Read on; the parser calls the methods below."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._recorder.failed("no HTTP", str(error))
            self.close()

    def on_body(self, body: bytes) -> None:
        """Keep the beginning of what the server says to a failed request."""
        if self._parser.get_status_code() >= 300 and len(self._body) < _LONGEST_MESSAGE:
            self._body += body

    def on_message_complete(self) -> None:
        """Tell the answer and ask again."""
        now, status = time.perf_counter(), self._parser.get_status_code()
        if self._sent_at is None:
            return
        if 200 <= status < 300:
            self._recorder.answered(now - self._sent_at)
        else:
            self._recorder.failed(f"status {status}", _message(self._body))
            self._body = b""
        self._sent_at = None
        if self._recorder.stopped or not self._parser.should_keep_alive():
            self.close()
        else:
            self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        self._transport.write(self._request.content)


def _message(body: bytes) -> str:
    """Return the error in a body of this project's form, else its first line."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(orjson.loads(body)["error"])
    return body.decode("utf-8", "replace").strip().partition("\n")[0][:200]
