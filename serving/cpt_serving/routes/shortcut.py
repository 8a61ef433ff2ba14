"""The way to inference past the framework's: the same function, found by its path alone.

Going through FastAPI's middleware and routes takes longer than all that a small request needs besides. The routes of
`v2_infer` stay: they are what `/docs` shows, and they answer every other method.
"""

import re
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cpt_deploy.errors import CptError
from cpt_serving.routes.v2_infer import PATHS, answer_infer
from cpt_serving.service import Service
from cpt_serving.web.errors import RequestError, error_answer, request_id_of

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


@dataclass(frozen=True, slots=True)
class _Route:
    """What the metrics ask of a route.

    Args:
        path: Its template.
    """

    path: str


_ROUTE, _ROUTE_OF_VERSION = (_Route(f"{path}/infer") for path in PATHS)


class InferShortcut:
    """ASGI middleware, the innermost: what holds for every request, as authorisation does, has to stand around it.

    Args:
        app: What answers all other requests.
        service: Whose models are asked.
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for inference, or pass another on."""
        found = None
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            found = _PATH.fullmatch(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        model, version = found.groups()
        scope["route"] = _ROUTE if version is None else _ROUTE_OF_VERSION
        request = Request(scope, receive)
        try:
            response = await answer_infer(self._service, request, self._service.find(model, version))
        except (RequestError, CptError) as error:
            response = error_answer(request_id_of(request), error)
        await response(scope, receive, send)
