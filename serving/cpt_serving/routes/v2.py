"""Metadata routes of the Open Inference Protocol; its health routes are in `health.py`."""

from fastapi import APIRouter

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.adapters.description import model_config, model_metadata
from cpt_serving.oip.metadata import server_metadata
from cpt_serving.oip.schemas import ModelConfig, ModelMetadata, ModelReadiness, ServerMetadata, StatisticsAnswer
from cpt_serving.oip.statistics import statistics_of
from cpt_serving.routes.v2_infer import PATHS
from cpt_serving.service import Service
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import error_answers


def v2_router(service: Service) -> APIRouter:
    """Return the routes of the server and of the models, with and without version."""
    router = APIRouter(tags=["Open Inference Protocol v2"], dependencies=[requires(Scope.INFER)])
    _add_server_routes(router, service)
    _add_model_routes(router, service)
    return router


def _add_server_routes(router: APIRouter, service: Service) -> None:
    async def server() -> ServerMetadata:
        """Name and version of the server, and its extensions of the protocol."""
        return server_metadata()

    async def statistics() -> StatisticsAnswer:
        """Number of requests of each model, and durations of their parts."""
        keys = [(status.name, status.version) for status in service.repository.models.index()]
        return statistics_of(service.metrics.samples(), keys)

    # The protocol's text has one path, its OpenAPI file the other; clients do not follow redirects.
    router.add_api_route("/v2", server)
    router.add_api_route("/v2/", server, include_in_schema=False)
    router.add_api_route("/v2/models/stats", statistics)


def _add_model_routes(router: APIRouter, service: Service) -> None:
    async def metadata(model: str, version: str | None = None) -> ModelMetadata:
        """Inputs and outputs of a model."""
        return model_metadata(service.find(model, version).bundle, service.repository.models.versions(model))

    async def ready(model: str, version: str | None = None) -> ModelReadiness:
        """Whether a model is ready."""
        service.find(model, version).require_ready()
        return ModelReadiness(name=model)

    async def config(model: str, version: str | None = None) -> JsonResponse:
        """A model's configuration in Triton's form."""
        return JsonResponse(model_config(service.find(model, version).bundle, service.settings))

    async def statistics(model: str, version: str | None = None) -> StatisticsAnswer:
        """Number of requests of a model, and durations of their parts."""
        service.find(model, version)
        versions = service.repository.models.versions(model) if version is None else [version]
        return statistics_of(service.metrics.samples(), [(model, each) for each in versions])

    errors = error_answers(404, 503)
    for path in PATHS:
        router.add_api_route(path, metadata, responses=errors, response_model_exclude_none=True)
        router.add_api_route(f"{path}/ready", ready, responses=errors)
        router.add_api_route(f"{path}/config", config, response_model=ModelConfig, responses=errors)
        router.add_api_route(f"{path}/stats", statistics, responses=errors)
