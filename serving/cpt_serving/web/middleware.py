"""The middleware around every request: id, trace, limits on the body, metrics, access log, and answers to errors."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable

from opentelemetry.trace import Span, Tracer
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpt_serving.telemetry.access_log import AccessLog
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.telemetry.records import RequestRecord, current_record, given_or_new_id
from cpt_serving.telemetry.tracing import current_trace, request_answered, request_span, trace_inference
from cpt_serving.web.bodies import BodyBudget, RequestBody, current_body
from cpt_serving.web.errors import INTERNAL_ERROR, error_response

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Content Security Policy of answers without their own: nothing in them is run, and no page may frame them."""

_RAW_REQUEST_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_WORTHWHILE = 2048
"""Compressing shorter answers would take longer than sending one more packet."""
_WANTED = re.compile(rb"(?:^|,)\s*(?:x-)?gzip\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[^,]*)?(?:,|$)", re.IGNORECASE)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499
_PIECE = 64 * 1024
"""Longer bodies of answers are sent in pieces of this size, the high-water mark of the transport's buffer."""


class RequestEdge:
    """ASGI middleware around all other layers of the server.

    HEAD is answered like GET, without the body, on every path. Answers are compressed for clients that accept it;
    unlike Starlette, it knows that `gzip;q=0` refuses it.

    Args:
        app: The inner app.
        budget: Memory for bodies.
        body_timeout_s: Seconds in which a body, or a large enough part of it, must arrive.
        metrics: Metrics that count requests.
        access_log: Log of requests, if they are logged.
        tracer: Creates spans, if requests are traced.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        budget: BodyBudget,
        body_timeout_s: float,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._compressing = GZipMiddleware(app, _WORTHWHILE, compresslevel=1)
        self._budget = budget
        self._body_timeout_s = body_timeout_s
        self._metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle one request."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        if self._tracer is None:
            return self._handle(scope, receive, send, None)
        return self._trace(self._tracer, scope, receive, send)

    async def _trace(self, tracer: Tracer, scope: Scope, receive: Receive, send: Send) -> None:
        with request_span(tracer, scope) as span:
            await self._handle(scope, receive, send, span)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, span: Span | None) -> None:
        method = scope["method"]
        body = RequestBody(scope, receive, self._budget, self._body_timeout_s)
        record = RequestRecord(
            given_or_new_id(body.headers.get(_RAW_REQUEST_ID_HEADER, b"")), None if span is None else current_trace()
        )
        current_record.set(record)
        current_body.set(body)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                body.answered()
                message["headers"] = _headers(message, record)
                if record.inference is not None:
                    self._computed(record, body.completed_at)
            elif method == "HEAD":
                message = {**message, "body": b""}
            elif len(message.get("body", b"")) > _PIECE:
                await _send_in_pieces(message, send)
                return
            await send(message)

        inner = {**scope, "method": "GET"} if method == "HEAD" else scope
        accepted = body.headers.get(b"accept-encoding")
        app = self._compressing if accepted and _WANTED.search(accepted) else self._app
        started = time.perf_counter()
        self._metrics.request_started()
        try:
            await app(inner, receive, send_with_headers)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except asyncio.CancelledError:
            # Only a cancellation because the client left ends here; the server's own cancellation is raised again.
            task = asyncio.current_task()
            if not body.client_gone or task is None:
                raise
            task.uncancel()
            status = _CLIENT_GONE
        except Exception:
            # A bug must cost one request, not the connection or the process.
            logger.exception("request %s failed", record.request_id)
            if status == 0:
                await error_response(500, INTERNAL_ERROR)(inner, receive, send_with_headers)
        finally:
            body.release()
            route, seconds = _route(inner), time.perf_counter() - started
            self._metrics.request_finished(route, method if method in _METHODS else "other", status, seconds)
            if span is not None:
                request_answered(span, method, route, status)
            if self._access_log is not None:
                self._access_log.add(scope, record, route, status, seconds)

    def _computed(self, record: RequestRecord, received_at: float) -> None:
        """Count an inference whose answer is about to be sent, and add it to the trace."""
        self._metrics.request_converted(
            record.model, record.version, record.asked_at - received_at, time.monotonic() - record.computed_at
        )
        if self._tracer is not None:
            trace_inference(self._tracer, record)


async def _send_in_pieces(message: Message, send: Send) -> None:
    """Send a long body, and return only once most of it has left.

    The web server's `send` writes to the transport's buffer, and waits only if that is still full from before. Sent at
    once, a whole answer would be in that buffer while its memory counts as free.
    """
    body = message["body"]
    for start in range(0, len(body), _PIECE):
        await send({**message, "body": body[start : start + _PIECE], "more_body": True})
    await send({**message, "body": b""})


def _headers(message: Message, record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with those common to all answers."""
    headers = [*message.get("headers", ()), (_RAW_REQUEST_ID_HEADER, record.request_id.encode())]
    present = dict(headers)
    headers += [header for header in SECURITY_HEADERS if header[0] not in present]
    return headers


def _route(scope: Scope) -> str:
    """Return the template of the route, so that paths invented by clients do not multiply the metrics."""
    return str(getattr(scope.get("route"), "path", "unknown"))
