"""What the Open Inference Protocol tells of the server and its models; its health routes stand with the others."""

from fastapi import APIRouter

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.oip.metadata import server_metadata
from cpt_serving.oip.schemas import ModelConfig, ModelMetadata, ModelReadiness, ServerMetadata, StatisticsAnswer
from cpt_serving.oip.statistics import statistics_of
from cpt_serving.routes.v2_infer import PATHS
from cpt_serving.service import Service
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import error_answers


def v2_router(service: Service) -> APIRouter:
    """Return the routes of the server and, with and without version, of the models."""
    router = APIRouter(tags=["Open Inference Protocol v2"], dependencies=[requires(Scope.INFER)])
    _add_server_routes(router, service)
    _add_model_routes(router, service)
    return router


def _add_server_routes(router: APIRouter, service: Service) -> None:
    async def server() -> ServerMetadata:
        """Who serves, and which extensions of the protocol it knows."""
        return server_metadata()

    async def statistics() -> StatisticsAnswer:
        """How many requests each model had, and how long each part of them took."""
        keys = [(status.name, status.version) for status in service.repository.models.index()]
        return statistics_of(service.metrics.samples(), keys)

    # The protocol's text has the one, its OpenAPI file the other; clients do not follow redirects.
    router.add_api_route("/v2", server)
    router.add_api_route("/v2/", server, include_in_schema=False)
    router.add_api_route("/v2/models/stats", statistics)


def _add_model_routes(router: APIRouter, service: Service) -> None:
    async def model_metadata(model: str, version: str | None = None) -> ModelMetadata:
        """What a model takes and returns."""
        return service.find(model, version).model.metadata(service.repository.models.versions(model))

    async def ready(model: str, version: str | None = None) -> ModelReadiness:
        """Whether a model can be asked."""
        service.find(model, version).require_ready()
        return ModelReadiness(name=model)

    async def config(model: str, version: str | None = None) -> JsonResponse:
        """A model's configuration in Triton's form."""
        return JsonResponse(service.find(model, version).model.config())

    async def statistics(model: str, version: str | None = None) -> StatisticsAnswer:
        """How many requests a model had, and how long each part of them took."""
        service.find(model, version)
        versions = service.repository.models.versions(model) if version is None else [version]
        return statistics_of(service.metrics.samples(), [(model, each) for each in versions])

    errors = error_answers(404, 503)
    for path in PATHS:
        router.add_api_route(path, model_metadata, responses=errors)
        router.add_api_route(f"{path}/ready", ready, responses=errors)
        router.add_api_route(f"{path}/config", config, response_model=ModelConfig, responses=errors)
        router.add_api_route(f"{path}/stats", statistics, responses=errors)
