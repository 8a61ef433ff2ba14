"""The routes of the server, one module per topic, each with a function that creates a router for a service."""

from cpt_serving.routes.generate import generate_router
from cpt_serving.routes.health import health_router
from cpt_serving.routes.metrics import metrics_router
from cpt_serving.routes.page import page_router
from cpt_serving.routes.predict import predict_router
from cpt_serving.routes.v2 import v2_router
from cpt_serving.routes.v2_generate import triton_generate_router
from cpt_serving.routes.v2_repository import repository_router

__all__ = ["ROUTERS", "page_router"]

ROUTERS = (
    predict_router,
    generate_router,
    triton_generate_router,
    health_router,
    v2_router,
    repository_router,
    metrics_router,
)
"""Routers of every server, in the order in which paths are matched and documented; the page's router is optional."""
