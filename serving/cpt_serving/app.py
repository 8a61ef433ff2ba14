"""The FastAPI app: the models and the routes around them."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import RedirectResponse

import cpt_deploy
from cpt_serving.errors import add_error_handlers
from cpt_serving.lifespan import running
from cpt_serving.metrics import Metrics
from cpt_serving.middleware import RequestEdge
from cpt_serving.oip.statistics import StatisticsRegistry
from cpt_serving.orders import ORDERS_VARIABLE, OrderBook
from cpt_serving.repository import ModelRepository
from cpt_serving.routes import ROUTERS, page_router
from cpt_serving.routes.shortcut import InferShortcut
from cpt_serving.service import Service
from cpt_serving.serving_app import ServingApp
from cpt_serving.settings import ServeSettings, load_settings


def create_app(settings: ServeSettings | None = None) -> FastAPI:
    """Return the app for a bundle or a directory of them; the models themselves are loaded when the app starts.

    Args:
        settings: What to serve and how; by default what the environment variables `CPT_SERVE_...` say.

    Raises:
        BundleError: If there is nothing to serve, or the one bundle cannot be opened.
        UsageError: If the environment's settings do not fit.
    """
    return app_of(create_service(settings or load_settings()))


def create_service(settings: ServeSettings) -> Service:
    """Return what the routes stand on, with its models found but not loaded yet.

    Raises:
        BundleError: If there is nothing to serve, or the one bundle cannot be opened.
    """
    metrics, statistics = Metrics(), StatisticsRegistry()
    shared = os.environ.get(ORDERS_VARIABLE)
    orders = OrderBook(Path(shared)) if shared else None
    repository = ModelRepository(settings, [metrics.observe, statistics.observe], orders)
    return Service(settings, repository, metrics, statistics)


def app_of(service: Service) -> FastAPI:
    """Return the app around a service."""
    settings = service.settings
    names = service.repository.names
    app = ServingApp(
        title=names[0] if len(names) == 1 else "cpt-deploy",
        summary="Integer networks trained with Cyclic Precision Training, served by cpt-deploy.",
        version=cpt_deploy.__version__,
        docs_url="/docs" if settings.docs else None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
    )
    app.state.service = service
    # The first is the innermost.
    app.add_middleware(InferShortcut, service=service)
    app.add_middleware(
        RequestEdge,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        metrics=service.metrics,
    )
    add_error_handlers(app)
    for make_router in ROUTERS:
        app.include_router(make_router(service))
    if settings.page:
        app.include_router(page_router(service))
    elif settings.docs:
        app.add_api_route("/", _to_docs, include_in_schema=False)
    return app


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


def _grpc(service: Service) -> AbstractAsyncContextManager[None]:
    if service.settings.grpc_port is None:
        return nullcontext()
    from cpt_serving.grpc_api.server import running_grpc

    return running_grpc(service, service.settings.grpc_port)


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with running(service), _grpc(service):
            yield

    return lifespan
