"""Who may do what: every path needs a key of some scope, but for those that are open to everyone."""

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from cpt_serving.api_keys import ApiKey, KeyRing, Scope
from cpt_serving.errors import error_response
from cpt_serving.records import RequestRecord

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
                status, message, challenge = refusal
                headers = {"WWW-Authenticate": challenge} if challenge else None
                request_id = scope.get("state", {}).get("request_id", "")
                await error_response(request_id, status, message, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: AsgiScope) -> tuple[int, str, str] | None:
        """Return status, message and challenge of a refusal; `None` lets the request through."""
        path: str = scope["path"]
        if self._keys is None:
            return _no_administrators() if path.startswith(ADMIN_PREFIX) else None
        needed = required_scope(path)
        if needed is None or (needed is Scope.METRICS and self._open_metrics):
            return None
        if needed is Scope.ADMIN and not self._keys.has(Scope.ADMIN):
            return _no_administrators()
        sent = presented_key(scope)
        if sent is None:
            return 401, "Expected an API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, but got none", _REALM
        key = self._keys.find(sent)
        if key is None:
            return 401, "Expected an API key of this server, but got another one", f'{_REALM}, error="invalid_token"'
        return self._check_scope(scope, key, needed)

    def _check_scope(self, scope: AsgiScope, key: ApiKey, needed: Scope) -> tuple[int, str, str] | None:
        record = scope.get("state", {}).get("record")
        if isinstance(record, RequestRecord):
            record.key = key.name
        if needed in key.scopes:
            return None
        return (
            403,
            f"Expected an API key of the scope {needed}, but {key.name} has {', '.join(sorted(key.scopes))}",
            f'{_REALM}, error="insufficient_scope", scope="{needed}"',
        )


def presented_key(scope: AsgiScope) -> bytes | None:
    """Return the key that a request carries."""
    found = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token.strip():
                return bytes(token.strip())
        elif name == b"x-api-key" and value.strip():
            found = bytes(value.strip())
    return found


def _no_administrators() -> tuple[int, str, str]:
    return (
        403,
        "Expected a server whose models clients may load and unload, but none of its API keys has the scope admin "
        "(cpt api-key NAME FILE --scope admin, cpt serve --api-keys FILE)",
        "",
    )
