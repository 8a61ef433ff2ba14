"""What surrounds every request: its id, the limit on its body, its metrics, and an answer whatever happens inside."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpt_serving.errors import RequestError, error_response
from cpt_serving.metrics import Metrics

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
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["arrived"] = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        started = time.perf_counter()
        self._metrics.request_started()
        try:
            await self._app(scope, self._limited(scope, receive), send_with_id)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception:
            # The last line of defence: a bug must cost one request, not the connection or the process.
            logger.exception("request %s failed", request_id)
            if status == 0:
                response = error_response(request_id, 500, "Internal error; the server's log has it under this id")
                await response(scope, receive, send_with_id)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request_finished(_route(scope), method, status, time.perf_counter() - started)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` with a limit on the body, by its declared size at once and else while it arrives."""
        declared = Headers(scope=scope).get("content-length", "")
        limit, seen = self._max_body_bytes, 0

        async def limited() -> Message:
            nonlocal seen
            if declared.isdecimal() and int(declared) > limit:
                raise _too_large(limit, f"{declared} bytes")
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit, "more")
            return message

        return limited


def _too_large(limit: int, found: str) -> RequestError:
    return RequestError(413, f"Expected a body of at most {limit} bytes, but got {found}", {"Connection": "close"})


def _request_id(scope: Scope) -> str:
    """Return the client's id, if it is one that can stand in logs and headers, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """Return the template of the route, so that paths that clients make up do not multiply the metrics."""
    return str(getattr(scope.get("route"), "path", "unknown"))
