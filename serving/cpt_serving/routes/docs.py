"""`/docs`, the interactive description, with a policy that lets its own script run and no other."""

import base64
import hashlib
import re

from fastapi import APIRouter
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


def _policy(page: bytes) -> str:
    """Return a policy with the hashes of the scripts that stand in the page; its style and the rest come by CDN."""
    inline = re.findall(rb"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in inline)
    return (
        f"default-src 'none'; script-src {_CDN} {hashes}; style-src {_CDN} 'unsafe-inline'; "
        "img-src 'self' data: https://fastapi.tiangolo.com; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
