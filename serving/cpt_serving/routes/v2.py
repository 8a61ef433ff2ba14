"""The Open Inference Protocol, version 2, in JSON; its health routes stand with the others."""

from fastapi import APIRouter, Request

import cpt_deploy
from cpt_serving import protocol
from cpt_serving.deadlines import request_deadline
from cpt_serving.examples import infer_body
from cpt_serving.responses import JsonResponse
from cpt_serving.schemas import (
    ErrorAnswer,
    InferAnswer,
    ModelMetadata,
    ModelReadiness,
    ServerMetadata,
)
from cpt_serving.service import Service

SERVER_NAME = "cpt-deploy"
EXTENSIONS: list[str] = []


def v2_router(service: Service) -> APIRouter:
    """Return the routes of the server and, with and without version, of the models."""
    router = APIRouter(tags=["Open Inference Protocol v2"])
    _add_server_routes(router)
    _add_model_routes(router, service)
    return router


def _add_server_routes(router: APIRouter) -> None:
    async def server() -> ServerMetadata:
        """Who serves, and which extensions of the protocol it knows."""
        return ServerMetadata(name=SERVER_NAME, version=cpt_deploy.__version__, extensions=EXTENSIONS)

    # The protocol's text has the one, its OpenAPI file the other; clients do not follow redirects.
    router.add_api_route("/v2", server)
    router.add_api_route("/v2/", server, include_in_schema=False)


def _add_model_routes(router: APIRouter, service: Service) -> None:
    async def metadata(model: str, version: str | None = None) -> ModelMetadata:
        """What a model takes and returns."""
        return ModelMetadata.model_validate(protocol.model_metadata(service.find(model, version).bundle))

    async def ready(model: str, version: str | None = None) -> ModelReadiness:
        """Whether a model can be asked."""
        service.find(model, version).require_ready()
        return ModelReadiness(name=model)

    async def infer(request: Request, model: str, version: str | None = None) -> JsonResponse:
        """Compute the logits of normalised inputs, float32 N x C x H x W; for image files there is `/predict`."""
        engine = service.find(model, version)
        protocol.refuse_binary(request.headers)
        body = await request.body()
        asked, rows = await engine.decode(
            protocol.parse_infer_request, body, engine.bundle, max_rows=service.settings.max_rows
        )
        inference = await engine.infer(rows, deadline=request_deadline(request, service.settings))
        return JsonResponse(protocol.infer_answer(asked, engine.bundle, inference.logits))

    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        router.add_api_route(path, metadata, responses={404: {"model": ErrorAnswer}})
        router.add_api_route(f"{path}/ready", ready, responses={code: {"model": ErrorAnswer} for code in (404, 503)})
        router.add_api_route(
            f"{path}/infer",
            infer,
            methods=["POST"],
            response_model=InferAnswer,
            responses={code: {"model": ErrorAnswer} for code in (400, 404, 413, 429, 503, 504)},
            openapi_extra={"requestBody": infer_body(service.repository.example)},
        )
