"""Receiving the message of a call, with limits on its time and on the memory of all unfinished messages.

The library receives a message whole and tells nothing of one that has not arrived completely. Until the server asks for
the message, a client can send 64 KiB of it: therefore each call is a stream for the library, and asks when it may.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import too_large
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.json_bodies import CONTROL_BYTES

_SMALL_S, _FEW_SMALL = 5.0, 4
_CROWDED_LARGE_S, _CROWDED_SMALL_S = 5.0, 1.0
"""Time for messages when others wait, or many arrive: small ones arrive together with the head of their call."""


class Reception:
    """Receives the messages of calls.

    Args:
        settings: Settings with the limits.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._timeout_s = settings.body_timeout_s
        # A message that is not complete can have any size up to the maximum.
        self._large = asyncio.Semaphore(max(1, settings.max_memory_bytes // settings.max_body_bytes))
        self._small = 0

    async def message(self, context: Any, deserialize: Any, *, large: bool) -> Any:
        """Return the message of a call.

        Args:
            context: Context of the call.
            deserialize: Parses a small message; `None` leaves it as bytes.
            large: Whether it holds tensors; all others are small.

        Raises:
            RequestError: 408 if it does not arrive in time, 503 if others that arrive have the memory for it, 413 if a
                small one is large, 400 if there is none or it cannot be parsed.
        """
        async with self._large_place() if large else self._small_place() as seconds:
            try:
                async with asyncio.timeout(seconds):
                    data = await context.read()
            except TimeoutError:
                raise RequestError(408, f"Expected the message within {seconds:.0f} s, but got a part of it") from None
        if data is grpc.aio.EOF:
            raise bad_request("Expected a message, but got none")
        if not large and len(data) > CONTROL_BYTES:
            raise too_large(CONTROL_BYTES, f"{len(data)} bytes")
        try:
            return data if deserialize is None else deserialize(data)
        except DecodeError as error:
            raise bad_request(f"Expected a message of the protocol, but got: {error}") from error

    @asynccontextmanager
    async def _large_place(self) -> AsyncIterator[float]:
        crowded = self._large.locked()
        try:
            async with asyncio.timeout(self._timeout_s) if crowded else nullcontext():
                await self._large.acquire()
        except TimeoutError:
            raise RequestError(
                503, "Expected memory for the message, but others that arrive have it", {"Retry-After": "1"}
            ) from None
        try:
            yield min(self._timeout_s, _CROWDED_LARGE_S) if crowded else self._timeout_s
        finally:
            self._large.release()

    @asynccontextmanager
    async def _small_place(self) -> AsyncIterator[float]:
        self._small += 1
        try:
            yield min(self._timeout_s, _SMALL_S if self._small <= _FEW_SMALL else _CROWDED_SMALL_S)
        finally:
            self._small -= 1
