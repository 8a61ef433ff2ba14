"""API keys over gRPC: the metadata of a call holds what headers hold over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cpt_serving.access.api_keys import KeyRing, Scope
from cpt_serving.access.control import find_key, presented_key, require_scope
from cpt_serving.grpc_api.calls import REQUEST_ID, Calls, abort
from cpt_serving.grpc_api.servicer import SERVICE
from cpt_serving.grpc_api.standard import HEALTH
from cpt_serving.web.errors import RequestError
from cpt_serving.web.records import RequestRecord, current_record, given_or_new_id
from cpt_serving.web.shown import shown

_OPEN = frozenset(
    [
        *(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady")),
        *(f"/{HEALTH}/{name}" for name in ("Check", "Watch")),
    ]
)
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
        calls: What counts and logs the calls that are refused.
    """

    def __init__(self, keys: KeyRing | None, calls: Calls) -> None:
        self._keys = keys
        self._calls = calls

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return what answers a call: its method, or a refusal."""
        method: str = handler_call_details.method
        metadata = [(name.encode(), _raw(value)) for name, value in handler_call_details.invocation_metadata]
        record = RequestRecord(given_or_new_id(dict(metadata).get(REQUEST_ID.encode(), b"")))
        # What answers the call runs in the same task.
        current_record.set(record)
        handler = await continuation(handler_call_details)
        try:
            needed = required_scope(method)
            key = find_key(self._keys, needed, presented_key(metadata))
            if key is not None and needed is not None:
                record.key = key.name
                require_scope(key, needed)
            if handler is None:
                raise RequestError(501, f"Expected a known method, but got {shown(method)}")
        except RequestError as refusal:
            # Methods that are not there share a name in the metrics, so that clients cannot make up endless ones.
            return self._refuse("unknown" if handler is None else method, refusal)
        return handler

    def _refuse(self, method: str, refusal: RequestError) -> Any:
        async def refuse(_requests: Any, context: Any) -> None:
            try:
                with self._calls.under_way(method, context):
                    raise refusal
            except RequestError as error:
                await abort(context, error)

        # A stream is not waited for; on the wire it is the same for a call with one message.
        return grpc.stream_stream_rpc_method_handler(refuse)


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
