"""Refuses requests that pages of other origins make browsers send; CORS alone would only hide the answers from them."""

from collections.abc import Awaitable, Collection, Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from cpt_serving.web.errors import error_response

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TELLING = frozenset({b"host", b"origin", b"sec-fetch-site"})


class OriginGuard:
    """ASGI middleware that lets pages of other origins read what any link can open, and have nothing computed.

    Browsers say in `Sec-Fetch-Site` where a request comes from; over plain HTTP from another machine they do not, and
    `Origin` is compared with `Host`. Requests with neither are not from a page
    ([Fetch Metadata](https://www.w3.org/TR/fetch-metadata/)).

    Args:
        app: The inner app.
        allowed: Origins whose pages may send requests; `*` is all.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = {origin.encode().lower() for origin in allowed}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in _READING or self._may_ask(scope["headers"]):
            return self._app(scope, receive, send)
        message = "Expected a request of this server's own page, but it came from a page of another origin"
        return error_response(403, f"{message} (--cors-origins allows others)")(scope, receive, send)

    def _may_ask(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        told = {name: value for name, value in headers if name in _TELLING}
        origin, site = told.get(b"origin"), told.get(b"sec-fetch-site")
        if origin is None and site is None:
            return True
        if not self._allowed.isdisjoint((b"*", (origin or b"").lower())):
            return True
        if site is not None:
            return site in (b"same-origin", b"none")
        return origin is None or _host(origin) == told.get(b"host", b"").lower()


def _host(origin: bytes) -> bytes:
    """Return host and port of an origin, as `Host` has them; nothing for `null` and what is no origin."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return b""
