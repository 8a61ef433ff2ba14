"""What surrounds every call: its id, metrics, access log, and how errors leave it. The counterpart of `RequestEdge`."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from cpt_deploy.errors import CptError
from cpt_serving.shutdown import Shutdown
from cpt_serving.telemetry.access_log import AccessLog
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.web.errors import RequestError, as_request_error
from cpt_serving.web.records import RequestRecord, current_record, given_or_new_id

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

_CLIENT_GONE = 499
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's codes for the statuses that requests end with over HTTP."""


class Calls:
    """Counts and logs calls.

    Args:
        metrics: Where they are counted.
        access_log: Where they are logged, if they are.
    """

    def __init__(self, metrics: Metrics, access_log: AccessLog | None) -> None:
        self._metrics = metrics
        self._access_log = access_log

    @contextmanager
    def under_way(self, method: str, context: Any, *, stream: bool = False) -> Iterator[RequestRecord]:
        """Count and log what is in the context as one call: a whole one, or one message of a stream.

        Args:
            method: Full name of the method, `/SERVICE/NAME`.
            context: Of the call.
            stream: Whether clients end it by leaving.

        Raises:
            RequestError: With the status that it would end with over HTTP.
        """
        call = current_record.get() or RequestRecord(given_or_new_id(b""))
        record = RequestRecord(call.request_id, key=call.key)
        current_record.set(record)
        status, arrived, started = 200 if stream else _CLIENT_GONE, time.monotonic(), time.perf_counter()
        self._metrics.request_started()
        try:
            yield record
            status = 200
        except (RequestError, CptError) as error:
            meant = as_request_error(error)
            status = meant.status
            raise meant from error
        except Exception as error:
            # As over HTTP: a bug must cost one request, and tell its client nothing of the server's inside.
            status = 500
            logger.exception("%s failed, request %s", method, record.request_id)
            raise RequestError(status, "Internal error; the server's log has it") from error
        finally:
            current_record.set(call)
            seconds = time.perf_counter() - started
            if record.inference is not None:
                self._metrics.request_converted(
                    record.model, record.version, record.asked_at - arrived, time.monotonic() - record.computed_at
                )
            self._metrics.request_finished(method, "gRPC", status, seconds)
            if self._access_log is not None:
                scope = {"method": "gRPC", "client": (_address(context.peer()),)}
                self._access_log.add(scope, record, method, status, seconds)


async def abort(context: Any, error: RequestError) -> None:
    """End a call with an error, under the call's id."""
    call = current_record.get()
    trailing = [] if call is None else [(REQUEST_ID, call.request_id)]
    if (after_s := error.headers.get("Retry-After")) is not None:
        # What gRPC's retry policies know as the time to wait.
        trailing.append(("grpc-retry-pushback-ms", f"{after_s}000"))
    await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, tuple(trailing))


async def until_the_end(messages: AsyncIterator[Any], shutdown: Shutdown) -> AsyncIterator[Any]:
    """Yield the messages of a stream until the client has no more, or the server stops before the next one."""
    waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(shutdown.stopping())]
    try:
        while True:
            waiting[1:] = [asyncio.ensure_future(anext(messages, None))]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            message = waiting[1].result() if waiting[1].done() else None
            if message is None:
                return
            yield message
    finally:
        for future in waiting:
            future.cancel()


def _address(peer: str) -> str:
    """Return the address in gRPC's name of a client, such as `ipv4:10.0.0.7:4711` or `ipv6:%5B::1%5D:4711`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
