"""The repository extension of the Open Inference Protocol: listing, loading and unloading models."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.inference.engine import EngineState
from cpt_serving.oip.schemas import RepositoryChange, RepositoryIndexRequest, inline_schema
from cpt_serving.repository.model_table import ModelStatus
from cpt_serving.service import Service
from cpt_serving.web.json_bodies import CONTROL_BYTES, checked, read_object
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import BODY_ERRORS, error_answers


def repository_router(service: Service) -> APIRouter:
    """Return the routes of the repository."""
    # Clients of the protocol send JSON without a Content-Type, or nothing at all.
    router = APIRouter(prefix="/v2/repository", tags=["Open Inference Protocol v2"])

    async def index() -> JsonResponse:
        """The state of every model and version, or of those that are ready."""
        wanted = checked(RepositoryIndexRequest, await read_object(CONTROL_BYTES))
        return JsonResponse(
            [each for each in service.repository.models.index() if each.state is EngineState.READY or not wanted.ready]
        )

    async def load(model: str) -> Response:
        """Load a model, or reload it if its files changed; needs an API key of the scope `admin`."""
        await service.repository.load(model, await _version())
        return Response()

    async def unload(model: str) -> Response:
        """Unload a model once its requests are answered; needs an API key of the scope `admin`."""
        await service.repository.unload(model, await _version())
        return Response()

    router.add_api_route(
        "/index",
        index,
        methods=["POST"],
        dependencies=[requires(Scope.INFER)],
        response_model=list[ModelStatus],
        responses=error_answers(*BODY_ERRORS),
        openapi_extra=_body(inline_schema(RepositoryIndexRequest)),
    )
    for name, change in (("load", load), ("unload", unload)):
        router.add_api_route(
            f"/models/{{model}}/{name}",
            change,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            response_class=Response,
            responses=error_answers(*BODY_ERRORS, 403, 404),
            openapi_extra=_body(inline_schema(RepositoryChange)),
        )
    return router


async def _version() -> str | None:
    """Return the version that a client wants to load or unload; `None` stands for all versions."""
    change = checked(RepositoryChange, await read_object(CONTROL_BYTES))
    return None if change.parameters is None else change.parameters.version


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}
