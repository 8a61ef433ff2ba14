"""The interceptor around every gRPC call: id, key, span, metrics, access log and errors, like `RequestEdge` of HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from opentelemetry.trace import StatusCode, Tracer

from cpt_deploy.errors import CptError
from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import AccessControl
from cpt_serving.grpc_api.calls import CallLimits, Places, end_unless_read, send, until_idle
from cpt_serving.grpc_api.receiving import Reception
from cpt_serving.service import Service
from cpt_serving.shutdown import Shutdown
from cpt_serving.telemetry.access_log import AccessLog
from cpt_serving.telemetry.records import RequestRecord, current_record, given_or_new_id
from cpt_serving.telemetry.tracing import current_trace, server_span, trace_inference
from cpt_serving.web.errors import RequestError, as_request_error
from cpt_serving.web.shown import shown

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
STREAM = f"/{SERVICE}/ModelStreamInfer"
"""The streaming method; each of its messages is handled like a call."""

INFER = f"/{SERVICE}/ModelInfer"
WATCH = f"/{HEALTH}/Watch"
_EMPTY = {f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady"}
"""Methods whose messages have no fields."""

_OPEN = {*_EMPTY, f"/{HEALTH}/Check", WATCH}
_ADMIN = {f"/{SERVICE}/RepositoryModelLoad", f"/{SERVICE}/RepositoryModelUnload"}
_REQUEST_ID = "x-request-id"
_CLIENT_GONE, _FIRST_FAULT = 499, 500
_CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    _CLIENT_GONE: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's codes for the statuses of HTTP."""


class CallEdge(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor of all calls; refuses calls without a key of the needed scope before their message is read.

    Args:
        service: The service that answers.
        access: Checks the API keys.
        access_log: Log of calls, if they are logged.
        tracer: Creates spans, if calls are traced.
    """

    def __init__(
        self, service: Service, access: AccessControl, access_log: AccessLog | None, tracer: Tracer | None
    ) -> None:
        self._metrics, self._shutdown = service.metrics, service.shutdown
        self._access, self._access_log, self._tracer = access, access_log, tracer
        self._limits = CallLimits(service.settings.max_connections)
        self._reception = Reception(service.settings)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the handler of a call: that of its method, or one that refuses it."""
        method: str = handler_call_details.method
        metadata = [(name.encode(), _raw(value)) for name, value in handler_call_details.invocation_metadata]
        record = RequestRecord(given_or_new_id(dict(metadata).get(_REQUEST_ID.encode(), b"")))
        # The handler of the call runs in the same task.
        current_record.set(record)
        handler = await continuation(handler_call_details)
        try:
            self._access.check(metadata, _scope(method))
            if handler is None:
                raise RequestError(501, f"Expected a known method, but got {shown(method)}")
            self._places(method, handler).take()
        except RequestError as refusal:
            # Unknown methods share a name in the metrics, so that clients cannot create any number of them.
            return self._refuse("unknown" if handler is None else method, refusal)
        return self._around(method, handler)

    def _places(self, method: str, handler: Any) -> Places:
        """Return the places for calls like this one: calls that need no key, or wait, take none from the others."""
        if method == WATCH:
            return self._limits.watches
        if method in _OPEN:
            return self._limits.open
        return self._limits.streams if handler.request_streaming else self._limits.calls

    @contextmanager
    def under_way(self, method: str, context: Any, *, stream: bool = False) -> Iterator[RequestRecord]:
        """Count, trace and log the work inside of the context as one call: a whole call, or one message of a stream.

        Args:
            method: Full name of the method, `/SERVICE/NAME`.
            context: Context of the call.
            stream: Whether the call is a stream, which clients end by leaving.

        Raises:
            RequestError: With the status that the call would have over HTTP.
        """
        call = current_record.get() or RequestRecord(given_or_new_id(b""))
        record = RequestRecord(call.request_id, key=call.key)
        current_record.set(record)
        status, arrived = 200 if stream else _CLIENT_GONE, time.monotonic()
        self._metrics.request_started()
        about = {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}
        with server_span(self._tracer, method, dict(context.invocation_metadata()), about) as span:
            record.trace = current_trace()
            try:
                yield record
                status = 200
            except (RequestError, CptError) as error:
                meant = as_request_error(error)
                status = meant.status
                raise meant from error
            except Exception as error:
                # As over HTTP: a bug must cost one request, and reveal nothing of the server to its client.
                status = 500
                logger.exception("%s failed, request %s", method, record.request_id)
                raise RequestError(status, "Internal error; the server's log has it") from error
            finally:
                current_record.set(call)
                span.set_attribute("rpc.response.status_code", _CODES.get(status, grpc.StatusCode.INTERNAL).name)
                if status >= _FIRST_FAULT:
                    span.set_status(StatusCode.ERROR)
                self._finish(record, method, context, status, arrived)

    def _finish(self, record: RequestRecord, method: str, context: Any, status: int, arrived: float) -> None:
        ended = time.monotonic()
        self._metrics.request_finished(method, "gRPC", status, ended - arrived)
        if record.inference is not None:
            self._metrics.request_converted(
                record.model, record.version, record.asked_at - arrived, ended - record.computed_at
            )
            if self._tracer is not None:
                trace_inference(self._tracer, record)
        if self._access_log is not None:
            scope = {"method": "gRPC", "client": (_address(context.peer()),)}
            self._access_log.add(scope, record, method, status, ended - arrived)

    def _around(self, method: str, handler: Any) -> Any:
        """Return the handler of a method with counting, tracing and logging around it; streams end with the server."""
        kinds = ("unary", "stream")
        inner = getattr(handler, f"{kinds[handler.request_streaming]}_{kinds[handler.response_streaming]}")

        async def received(requests: Any, context: Any) -> Any:
            if handler.request_streaming:
                return until_idle(requests)
            if method in _EMPTY:  # not even read
                return b""
            return await self._reception.message(context, handler.request_deserializer, large=method == INFER)

        async def unary(requests: Any, context: Any) -> Any:
            with self.under_way(method, context):
                answer = await inner(await received(requests, context), context)
            end_unless_read()
            return answer

        async def stream(requests: Any, context: Any) -> None:
            with self.under_way(method, context, stream=True):
                answers = until_the_end(inner(await received(requests, context), context), self._shutdown)
                async with aclosing(answers):
                    async for answer in answers:
                        await send(context, answer)

        async def calls(requests: Any, context: Any) -> None:  # each counts by itself
            async with aclosing(inner(await received(requests, context), context)) as answers:
                async for answer in answers:
                    await send(context, answer)

        whole = stream if handler.response_streaming else unary
        answer = calls if method == STREAM else whole

        async def call(requests: Any, context: Any) -> Any:
            try:
                return await answer(requests, context)
            except RequestError as error:
                await _abort(context, error)

        # On the wire, a stream looks like a call with one message, which the library would read before all this.
        deserialize = handler.request_deserializer if handler.request_streaming else None
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call, deserialize, handler.response_serializer)
        # The library sends a single answer and its status together, which costs less than a stream of one.
        return grpc.stream_unary_rpc_method_handler(call, deserialize, handler.response_serializer)

    def _refuse(self, method: str, refusal: RequestError) -> Any:
        async def refuse(_requests: Any, context: Any) -> None:
            try:
                with self.under_way(method, context):
                    raise refusal
            except RequestError as error:
                await _abort(context, error)

        # gRPC's shutdown does not wait for a stream; on the wire, a call with one message looks the same.
        return grpc.stream_stream_rpc_method_handler(refuse)


def _scope(method: str) -> Scope | None:
    """Return the scope that a call needs, also for an unknown method."""
    if method in _OPEN:
        return None
    return Scope.ADMIN if method in _ADMIN else Scope.INFER


async def until_the_end(messages: AsyncIterator[Any], shutdown: Shutdown) -> AsyncGenerator[Any]:
    """Yield the messages of a stream until it ends, or until the server stops."""
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


async def _abort(context: Any, error: RequestError) -> None:
    """End a call with an error and the call's id."""
    call = current_record.get()
    trailing = [] if call is None else [(_REQUEST_ID, call.request_id)]
    if (after_s := error.headers.get("Retry-After")) is not None:
        # gRPC's retry policies wait for this time.
        trailing.append(("grpc-retry-pushback-ms", f"{after_s}000"))
    await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, tuple(trailing))


def _address(peer: str) -> str:
    """Return the IP address in a peer name of gRPC, such as `ipv4:10.0.0.7:4711` or `ipv6:%5B::1%5D:4711`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
