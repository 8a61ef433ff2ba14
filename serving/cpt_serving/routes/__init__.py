"""The routes of the server, one module a topic; each has a function that makes a router for a service."""

from cpt_serving.routes.health import health_router
from cpt_serving.routes.metrics import metrics_router
from cpt_serving.routes.page import page_router
from cpt_serving.routes.predict import predict_router
from cpt_serving.routes.v2 import v2_router

__all__ = ["health_router", "metrics_router", "page_router", "predict_router", "v2_router"]
