"""Who may do what: every path needs a key of some scope, but for those that are open to everyone."""

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from cpt_serving.access.api_keys import ApiKey, KeyRing, Scope
from cpt_serving.web.errors import error_response
from cpt_serving.web.records import RequestRecord

OPEN_PATHS = frozenset(
    {
        "/",
        "/docs",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""For probes, and pages without content of their own."""

METRICS_PATH = "/metrics"
ADMIN_PREFIX = "/v2/repository/models/"

_PAGE_PREFIX = "/page/"
_REALM = 'Bearer realm="cpt-serve"'


def required_scope(path: str) -> Scope | None:
    """Return the scope that a path needs; also one that leads nowhere, so that nothing can be found out by trying.

    Args:
        path: Path of a request, as routes are looked up by it.
    """
    if path in OPEN_PATHS or path.startswith(_PAGE_PREFIX):
        return None
    if path.startswith(ADMIN_PREFIX):
        return Scope.ADMIN
    return Scope.METRICS if path == METRICS_PATH else Scope.INFER


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not go on.

    Args:
        status: 401 without a valid key, 403 with one that is not enough.
        message: For the client.
        challenge: Content of `WWW-Authenticate`; empty if no key would help.
    """

    status: int
    message: str
    challenge: str = ""


def check_key(keys: KeyRing | None, needed: Scope | None, sent: bytes | None) -> ApiKey | Refusal | None:
    """Return whose key a request came with, why it is refused, or `None` if it needs no key.

    Args:
        keys: The keys of the server; with `None` everything is open but what administrators do, which is off.
        needed: Scope that the request needs; `None` if it is open to everyone.
        sent: The key that came with it, if one did.
    """
    if needed is None or (keys is None and needed is not Scope.ADMIN):
        return None
    if keys is None or (needed is Scope.ADMIN and not keys.has(Scope.ADMIN)):
        return _NO_ADMINISTRATORS
    if sent is None:
        return Refusal(
            401, "Expected an API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, but got none", _REALM
        )
    key = keys.find(sent)
    if key is None:
        message = "Expected an API key of this server, but got another one"
        return Refusal(401, message, f'{_REALM}, error="invalid_token"')
    return key


def missing_scope(key: ApiKey, needed: Scope) -> Refusal | None:
    """Return why a key is not enough, if it is not."""
    if needed in key.scopes:
        return None
    return Refusal(
        403,
        f"Expected an API key of the scope {needed}, but {key.name} has {', '.join(sorted(key.scopes))}",
        f'{_REALM}, error="insufficient_scope", scope="{needed}"',
    )


class AccessControl:
    """ASGI middleware inside of `RequestEdge`.

    Args:
        app: What it protects.
        keys: The keys; with `None` everything is open but the routes of administrators, which are off.
        open_metrics: Whether the metrics need no key.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing | None, open_metrics: bool = False) -> None:
        self._app = app
        self._keys = keys
        self._open_metrics = open_metrics

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "http":
            refusal = self._check(scope)
            if refusal is not None:
                headers = {"WWW-Authenticate": refusal.challenge} if refusal.challenge else None
                request_id = scope.get("state", {}).get("request_id", "")
                await error_response(request_id, refusal.status, refusal.message, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: AsgiScope) -> Refusal | None:
        needed = required_scope(scope["path"])
        if needed is Scope.METRICS and self._open_metrics:
            return None
        found = check_key(self._keys, needed, presented_key(scope["headers"]))
        if needed is None or not isinstance(found, ApiKey):
            return found if isinstance(found, Refusal) else None
        record = scope.get("state", {}).get("record")
        if isinstance(record, RequestRecord):
            record.key = found.name
        return missing_scope(found, needed)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key that a request carries.

    Args:
        headers: Its headers, or the metadata of a call, with names in lower case.
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


_NO_ADMINISTRATORS = Refusal(
    403,
    "Expected a server whose models clients may load and unload, but none of its API keys has the scope admin "
    "(cpt api-key NAME FILE --scope admin, cpt serve --api-keys FILE)",
)
