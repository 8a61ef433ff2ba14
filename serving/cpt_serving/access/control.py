"""Access control: each route declares the scope of an API key that it needs, which is checked before it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import Scope as AsgiScope

from cpt_serving.access.api_keys import KeyRing, Scope
from cpt_serving.telemetry.records import current_record
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import near_name, shown

_REALM = 'Bearer realm="cpt-serve"'


class AccessControl:
    """Checks the API keys of HTTP requests and gRPC calls.

    Args:
        keys: The keys; with `None` every route is open except those of administrators, which are off.
        open_metrics: Whether the metrics need no key.
    """

    def __init__(self, keys: KeyRing | None, *, open_metrics: bool = False) -> None:
        self._keys = keys
        self._open_metrics = open_metrics

    def check(self, headers: Iterable[tuple[bytes, bytes]], needed: Scope | None) -> None:
        """Raise an error unless the headers hold a key of the needed scope, and record the key's name.

        Args:
            headers: Headers of a request or metadata of a call, with names in lower case.
            needed: Scope that is needed; `None` if the route is open to everyone.

        Raises:
            RequestError: 401 without a valid key, 403 if the key lacks the scope, or if no key has it.
        """
        keys = self._keys
        if needed is None or (needed is Scope.METRICS and self._open_metrics):
            return
        if keys is None and needed is not Scope.ADMIN:
            return
        if keys is None or (needed is Scope.ADMIN and not keys.has(Scope.ADMIN)):
            raise RequestError(403, _NO_ADMINISTRATORS)
        sent = presented_key(headers)
        if sent is None:
            expected = "Expected an API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, but got none"
            raise _refusal(401, expected)
        key = keys.find(sent)
        if key is None:
            raise _refusal(401, "Expected an API key of this server, but got another one", 'error="invalid_token"')
        if (record := current_record.get()) is not None:
            record.key = key.name
        if needed not in key.scopes:
            raise _refusal(
                403,
                f"Expected an API key of the scope {needed}, but {key.name} has {', '.join(sorted(key.scopes))}",
                f'error="insufficient_scope", scope="{needed}"',
            )


def _refusal(status: int, message: str, *challenge: str) -> RequestError:
    return RequestError(status, message, {"WWW-Authenticate": ", ".join([_REALM, *challenge])})


@dataclass(frozen=True, slots=True)
class Guard:
    """Dependency of a route that checks the API key, and refuses unknown query parameters.

    Args:
        needed: Scope that is needed; `None` if the route is open to everyone.
        any_query: Whether the route accepts any query, like pages.
    """

    needed: Scope | None
    any_query: bool = False

    async def __call__(self, request: Request) -> None:
        """Raise an error unless the request may proceed.

        Raises:
            RequestError: 401 or 403 like `AccessControl.check`, 400 for an unknown query parameter.
        """
        self.check(request.app.state.access, request.scope)

    def check(self, access: AccessControl, scope: AsgiScope) -> None:
        """Do so without the framework.

        Raises:
            RequestError: Likewise.
        """
        access.check(scope["headers"], self.needed)
        if scope["query_string"] and not self.any_query:
            _check_query(Request(scope))


def requires(needed: Scope | None, *, any_query: bool = False) -> Any:
    """Return the dependency by which a route, or all routes of a router, need a scope."""
    return Depends(Guard(needed, any_query))


def guard_of(route: BaseRoute | RouteContext) -> Guard | None:
    """Return the guard of a route, or `None`."""
    dependant = getattr(route, "dependant", None)
    calls = [] if dependant is None else [each.call for each in dependant.dependencies]
    calls.append(getattr(route, "endpoint", None))
    for call in calls:
        found = call if isinstance(call, Guard) else getattr(call, "guard", None)
        if isinstance(found, Guard):
            return found
    return None


def require_guards(routes: Iterable[BaseRoute]) -> None:
    """Raise a `TypeError` for a route without a guard, so that no route is open by oversight."""
    open_by_oversight = [each.path for each in iter_route_contexts(list(routes)) if guard_of(each) is None]
    if open_by_oversight:
        raise TypeError(f"Expected each route to say which scope it needs, but got none of {open_by_oversight}")


def _check_query(request: Request) -> None:
    route = request.scope["route"]
    known = [field.alias for field in route.dependant.query_params] if isinstance(route, APIRoute) else []
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        expected = f"the query parameters {', '.join(known)}" if known else "no query parameters"
        raise bad_request(f"Expected {expected}, but got {shown(unknown)}{near_name(unknown, known)}")


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the API key in the headers of a request, or `None`.

    Args:
        headers: Headers of a request or metadata of a call, with names in lower case.
    """
    found = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token.strip():
                return bytes(token.strip())
        elif name == b"x-api-key" and value.strip():
            found = bytes(value.strip())
    return found


_NO_ADMINISTRATORS = (
    "Expected a server whose models clients may load and unload, but none of its API keys has the scope admin "
    "(cpt api-key NAME FILE --scope admin, cpt serve --api-keys FILE)"
)
