"""`/docs`, the interactive description, with a policy that lets its own script run and no other."""

import base64
import hashlib
import re
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

_CDN = "https://cdn.jsdelivr.net"


def docs_router(title: str, openapi_url: str) -> APIRouter:
    """Return the route of the page.

    Args:
        title: What the page is called.
        openapi_url: Where it finds the description.
    """
    router = APIRouter()
    page = bytes(get_swagger_ui_html(openapi_url=openapi_url, title=title).body)
    headers = {"Content-Security-Policy": _policy(page)}

    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    router.add_api_route("/docs", docs, include_in_schema=False)
    return router


def describe_keys(app: FastAPI) -> None:
    """Say in an app's description that requests need a key, so that `/docs` and generated clients ask for it."""
    describe = app.openapi

    def with_keys() -> dict[str, Any]:
        description = describe()
        schemes = description.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        schemes["header"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        description["security"] = [{"bearer": []}, {"header": []}]
        return description

    app.openapi = with_keys  # type: ignore[method-assign]


def _policy(page: bytes) -> str:
    """Return a policy with the hashes of the scripts that stand in the page; its style and the rest come by CDN."""
    inline = re.findall(rb"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in inline)
    return (
        f"default-src 'none'; script-src {_CDN} {hashes}; style-src {_CDN} 'unsafe-inline'; "
        "img-src 'self' data: https://fastapi.tiangolo.com; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
