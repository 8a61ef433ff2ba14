"""The metrics, for Prometheus to scrape."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.service import Service


def metrics_router(service: Service) -> APIRouter:
    """Return the route `/metrics`."""
    router = APIRouter(tags=["metrics"], dependencies=[requires(Scope.METRICS)])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Requests, latencies, images and the served model, in Prometheus' text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
