"""What surrounds every request: id and trace, limits on its body, metrics, log, and an answer whatever happens."""

import asyncio
import logging
import re
import time
import uuid

from opentelemetry.trace import Tracer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpt_serving.access_log import AccessLog
from cpt_serving.bodies import BodyReceiver
from cpt_serving.errors import error_response
from cpt_serving.metrics import Metrics
from cpt_serving.records import RequestRecord, current_record
from cpt_serving.security_headers import missing_security_headers
from cpt_serving.trace_context import TRACEPARENT, TraceContext, continued
from cpt_serving.tracing import current_trace, trace_inference

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499


class RequestEdge:
    """ASGI middleware that stands directly around the routes.

    Args:
        app: What it surrounds.
        max_body_bytes: Largest body that is read.
        body_timeout_s: Seconds in which a body has to come, apart from its size.
        metrics: Where requests are counted.
        access_log: Where they are logged, if they are.
        tracer: Makes spans, if requests are traced.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        trace = None if self._tracer is None else current_trace()
        record = RequestRecord(request_id, trace or _continued_trace(scope))
        state["request_id"] = request_id
        state["record"] = record
        state["arrived"] = time.monotonic()
        current_record.set(record)
        status = 0
        body = BodyReceiver(scope, receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                body.answered()
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                message["headers"] += missing_security_headers(message["headers"])
                if record.trace is not None:
                    message["headers"].append((TRACEPARENT, record.trace.render()))
                if record.inference is not None:
                    self._computed(record, body.completed_at)
            await send(message)

        started = time.perf_counter()
        self._metrics.request_started()
        try:
            await self._app(scope, body, send_with_id)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except asyncio.CancelledError:
            # Only what this middleware has cancelled ends here; the server's own cancellation goes on.
            task = asyncio.current_task()
            if not body.client_gone or task is None:
                raise
            task.uncancel()
            status = _CLIENT_GONE
        except Exception:
            # The last line of defence: a bug must cost one request, not the connection or the process.
            logger.exception("request %s failed", request_id)
            if status == 0:
                response = error_response(request_id, 500, "Internal error; the server's log has it under this id")
                await response(scope, receive, send_with_id)
        finally:
            body.answered()
            route, seconds = _route(scope), time.perf_counter() - started
            self._metrics.request_finished(
                route, scope["method"] if scope["method"] in _METHODS else "other", status, seconds
            )
            if self._access_log is not None:
                self._access_log.add(scope, record, route, status, seconds)

    def _computed(self, record: RequestRecord, received_at: float) -> None:
        """Count an inference whose answer is about to leave, and add it to the trace."""
        self._metrics.request_converted(
            record.model, record.version, record.asked_at - received_at, time.monotonic() - record.computed_at
        )
        if self._tracer is not None:
            trace_inference(self._tracer, record)


def _request_id(scope: Scope) -> str:
    """Return the client's id, if it is one that can stand in logs and headers, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _continued_trace(scope: Scope) -> TraceContext | None:
    """Return our span of the trace that the client says the request belongs to."""
    values = [value for name, value in scope["headers"] if name == TRACEPARENT]
    return continued(values) if values else None


def _route(scope: Scope) -> str:
    """Return the template of the route, so that paths that clients make up do not multiply the metrics."""
    return str(getattr(scope.get("route"), "path", "unknown"))
