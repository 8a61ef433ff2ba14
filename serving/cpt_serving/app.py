"""The FastAPI app: a bundle, its engine, and the routes around them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.responses import RedirectResponse

import cpt_deploy
from cpt_deploy.bundle import Bundle
from cpt_serving.engine import Engine
from cpt_serving.errors import add_error_handlers
from cpt_serving.metrics import Metrics
from cpt_serving.middleware import RequestEdge
from cpt_serving.routes import health_router, metrics_router, page_router, predict_router, v2_router
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings, load_settings
from cpt_serving.signals import announced_shutdown


def create_app(settings: ServeSettings | None = None) -> FastAPI:
    """Return the app for a bundle; the model itself is loaded when the app starts.

    Args:
        settings: What to serve and how; by default what the environment variables `CPT_SERVE_...` say.

    Raises:
        BundleError: If the bundle cannot be opened.
        UsageError: If the environment's settings do not fit.
    """
    settings = settings or load_settings()
    bundle = Bundle.open(settings.bundle)
    metrics = Metrics(bundle)
    service = Service(settings, Engine(bundle, settings, metrics), metrics)
    app = FastAPI(
        title=bundle.name,
        summary="An integer network trained with Cyclic Precision Training, served by cpt-deploy.",
        version=cpt_deploy.__version__,
        docs_url="/docs" if settings.docs else None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
    )
    app.state.service = service
    app.add_middleware(RequestEdge, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    add_error_handlers(app)
    for make_router in (predict_router, health_router, v2_router, metrics_router):
        app.include_router(make_router(service))
    if settings.page:
        app.include_router(page_router(service))
    elif settings.docs:
        app.add_api_route("/", _to_docs, include_in_schema=False)
    return app


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return what loads the model while the server starts, and fails readiness first when it stops."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.engine.load())
        with announced_shutdown(service.engine.begin_shutdown, service.settings.drain_s):
            yield
        await loading

    return lifespan
