"""The routes of the server, one module a topic; each has a function that makes a router for a service."""

from cpt_serving.routes.generate import generate_router
from cpt_serving.routes.health import health_router
from cpt_serving.routes.metrics import metrics_router
from cpt_serving.routes.page import page_router
from cpt_serving.routes.predict import predict_router
from cpt_serving.routes.v2 import v2_router
from cpt_serving.routes.v2_generate import triton_generate_router
from cpt_serving.routes.v2_infer import infer_router
from cpt_serving.routes.v2_repository import repository_router

__all__ = ["ROUTERS", "page_router"]

ROUTERS = (
    predict_router,
    generate_router,
    infer_router,
    triton_generate_router,
    health_router,
    v2_router,
    repository_router,
    metrics_router,
)
"""The interfaces of every server, in the order in which paths are looked up and documented; the page is optional."""
