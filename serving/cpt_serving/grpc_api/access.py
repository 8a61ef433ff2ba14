"""API keys over gRPC: the metadata of a call holds what headers hold over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cpt_serving.access.api_keys import KeyRing, Scope
from cpt_serving.access.control import find_key, presented_key, require_scope
from cpt_serving.grpc_api.servicer import SERVICE
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.web.errors import RequestError

_OPEN = frozenset(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady"))
_ADMIN = frozenset(f"/{SERVICE}/{name}" for name in ("RepositoryModelLoad", "RepositoryModelUnload"))


def required_scope(method: str) -> Scope | None:
    """Return the scope that a call needs; also one of a method that is not there.

    Args:
        method: Full name of the method, `/SERVICE/NAME`.
    """
    if method in _OPEN:
        return None
    return Scope.ADMIN if method in _ADMIN else Scope.INFER


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a key of the scope that they need, before anything of their message is read.

    Args:
        keys: The keys; with `None` everything is open but the calls of administrators, which are off.
        metrics: Where refused calls are counted.
    """

    def __init__(self, keys: KeyRing | None, metrics: Metrics) -> None:
        self._keys = keys
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return what answers a call: its method, or a refusal."""
        method: str = handler_call_details.method
        metadata = ((name.encode(), _raw(value)) for name, value in handler_call_details.invocation_metadata)
        handler = await continuation(handler_call_details)
        try:
            needed = required_scope(method)
            key = find_key(self._keys, needed, presented_key(metadata))
            if key is not None and needed is not None:
                require_scope(key, needed)
        except RequestError as refusal:
            # Methods that are not there share a name in the metrics, so that clients cannot make up endless ones.
            return self._refuse(method if handler is not None else "unknown", refusal)
        return handler

    def _refuse(self, method: str, refusal: RequestError) -> Any:
        code = grpc.StatusCode.UNAUTHENTICATED if refusal.status == 401 else grpc.StatusCode.PERMISSION_DENIED

        async def refuse(_requests: Any, context: Any) -> None:
            self._metrics.request_started()
            self._metrics.request_finished(method, "gRPC", refusal.status, 0.0)
            await context.abort(code, refusal.message)

        # A stream is not waited for; on the wire it is the same for a call with one message.
        return grpc.stream_stream_rpc_method_handler(refuse)


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
