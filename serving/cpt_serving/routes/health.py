"""Health routes: liveness, which does not depend on the models, and readiness, which does."""

from fastapi import APIRouter

from cpt_serving.access.control import requires
from cpt_serving.service import Service
from cpt_serving.web.schemas import ErrorAnswer, Liveness, Readiness


def health_router(service: Service) -> APIRouter:
    """Return the routes `/health/live` and `/health/ready`, also under `/v2`."""
    router = APIRouter(tags=["health"], dependencies=[requires(None)])

    async def live() -> Liveness:
        """Liveness: the process is running."""
        return Liveness()

    async def ready() -> Readiness:
        """Readiness: models are loaded, warmed up and have reproduced their golden samples; no shutdown has begun."""
        service.repository.models.require_ready()
        return Readiness(detail=service.repository.problem or None)

    for prefix in ("", "/v2"):
        router.add_api_route(f"{prefix}/health/live", live)
        router.add_api_route(
            f"{prefix}/health/ready", ready, response_model_exclude_none=True, responses={503: {"model": ErrorAnswer}}
        )
    return router
