"""`/docs`, the interactive API documentation, served from local files, and `/openapi.json`, which it shows."""

import base64
import hashlib
import importlib.resources
import re
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

from cpt_serving.access.control import requires
from cpt_serving.adapters import Adapter
from cpt_serving.routes.files import FILE_HEADERS, files_router
from cpt_serving.routes.v2_infer import infer_paths
from cpt_serving.service import Service
from cpt_serving.web.responses import JsonResponse

# The package holds a copy of Swagger UI, and an app that we do not use.
_FILES = importlib.resources.files("fastapi_offline") / "static"
_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def docs_router(app: FastAPI, service: Service, *, with_keys: bool) -> APIRouter:
    """Return the routes of the page, of its files and of the OpenAPI document.

    Args:
        app: The documented app.
        service: The service of the inference routes, which are documented with it.
        with_keys: Whether its routes need a key, so that the page and generated clients ask for it.
    """
    router = APIRouter(dependencies=[requires(None, any_query=True)])
    script, style, icon = (f"docs/{name}" for name in _NAMES)
    page = bytes(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        ).body
    )
    headers = {**FILE_HEADERS, "Content-Security-Policy": _policy(page)}

    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    # By the model whose examples it has, or by the app before there is one; a model that is unloaded is not kept.
    descriptions = WeakKeyDictionary[Adapter | FastAPI, dict[str, Any]]()

    def describe() -> dict[str, Any]:
        key = service.repository.models.first or app
        if key not in descriptions:
            described = app.openapi()
            described = {**described, "paths": {**described["paths"], **infer_paths(service)}}
            descriptions[key] = _with_keys(described) if with_keys else described
        return descriptions[key]

    # Not on the event loop: the first call is slow.
    def description(request: Request) -> JsonResponse:
        described = describe()
        root = request.scope.get("root_path", "").rstrip("/")
        return JsonResponse({**described, "servers": [{"url": root}]} if root else described)

    router.add_api_route("/docs", docs, include_in_schema=False)
    router.add_api_route("/openapi.json", description, include_in_schema=False)
    router.include_router(files_router("/docs", {name: (_FILES / name).read_bytes() for name in _NAMES}))
    return router


def _with_keys(described: dict[str, Any]) -> dict[str, Any]:
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    components = {**described.get("components", {}), "securitySchemes": schemes}
    return {**described, "components": components, "security": [{name: []} for name in schemes]}


def _policy(page: bytes) -> str:
    """Return a content security policy with the hashes of inline scripts; everything else comes from this server."""
    inline = re.findall(rb"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in inline)
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
