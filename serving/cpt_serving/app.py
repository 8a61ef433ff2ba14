"""The app: inference as plain routes, FastAPI with all others behind them, and the middleware and lifespan of both."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from opentelemetry.trace import Tracer, TracerProvider
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.routing import Router

import cpt_deploy
from cpt_deploy.bundle.integrity.signatures import public_keys
from cpt_deploy.errors import UsageError
from cpt_serving.access.api_keys import KeyRing, Scope
from cpt_serving.access.control import AccessControl, require_guards, requires
from cpt_serving.certificates import Certificate
from cpt_serving.lifespan import running
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.routes import ROUTERS, page_router
from cpt_serving.routes.docs import docs_router
from cpt_serving.routes.v2_infer import infer_routes
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings, load_settings
from cpt_serving.shutdown import Shutdown, finished
from cpt_serving.telemetry.access_log import AccessLog, open_access_log
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.telemetry.tracing import close_tracing, open_tracing
from cpt_serving.web.bodies import BodyBudget
from cpt_serving.web.errors import add_error_handlers
from cpt_serving.web.middleware import RequestEdge
from cpt_serving.web.origins import OriginGuard

_EXPORT_S = 1.0
"""Time after the shutdown deadline in which spans are exported."""
_CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Inference-Header-Content-Length",
    "Traceparent",
    "X-Api-Key",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
)
_CORS_ANSWER_HEADERS = ("Inference-Header-Content-Length", "Retry-After", "X-Request-Id")


def create_app(settings: ServeSettings | None = None) -> Router:
    """Return the app for a bundle or a directory of bundles; the models are loaded when the app starts.

    Args:
        settings: What to serve and how; read from the environment variables `CPT_SERVE_...` by default.

    Raises:
        BundleError: If there is nothing to serve, or the one bundle cannot be opened.
        UsageError: If the environment's settings do not fit.
    """
    return app_of(create_service(settings or load_settings()))


def create_service(settings: ServeSettings) -> Service:
    """Return the service behind the routes; its models are found but not loaded yet.

    Raises:
        BundleError: If there is nothing to serve, or the one bundle cannot be opened.
        DataError: If the certificate, its key or the public keys of signatures cannot be used.
        UsageError: If a key for TLS comes without a certificate.
    """
    if settings.require_signature is not None:
        public_keys(settings.require_signature)
    if settings.tls_key is not None and settings.tls_cert is None:
        raise UsageError(f"Expected a certificate for the key {settings.tls_key}, but got none", hint="--tls-cert")
    metrics = Metrics()
    repository = ModelRepository(settings, metrics.observe)
    metrics.show_models(lambda: repository.models.served, lambda: not repository.problem)
    shutdown = Shutdown(settings.drain_s, settings.shutdown_s, repository.begin_shutdown)
    certificate = None if settings.tls_cert is None else Certificate(settings.tls_cert, settings.tls_key)
    return Service(settings, repository, metrics, shutdown, certificate, BodyBudget(settings.max_memory_bytes))


def app_of(service: Service, *, tracer_provider: TracerProvider | None = None) -> Router:
    """Return the app around a service.

    Args:
        service: Models, settings and metrics behind the routes.
        tracer_provider: Provider of spans; chosen from the settings and OpenTelemetry's variables by default.

    Raises:
        DataError: If the file of API keys or of the access log cannot be opened.
        MissingExtraError: If the settings ask for tracing and it is not installed.
    """
    settings = service.settings
    access_log = open_access_log(settings, service.metrics.access_line_dropped)
    keys = None if settings.api_keys is None else KeyRing(settings.api_keys)
    provider = tracer_provider or open_tracing(settings)
    tracer = None if provider is None else provider.get_tracer("cpt_serving", cpt_deploy.__version__)
    access = AccessControl(keys, open_metrics=settings.open_metrics)
    direct = infer_routes(service, access)
    api = _api(service, access, with_keys=keys is not None)
    require_guards([*direct, *api.routes])
    edge = Middleware(
        RequestEdge,
        budget=service.memory,
        body_timeout_s=settings.body_timeout_s,
        metrics=service.metrics,
        access_log=access_log,
        tracer=tracer,
    )
    return Router(
        direct,
        default=api,
        redirect_slashes=False,
        middleware=[edge, *_origins(settings)],
        lifespan=_lifespan(_Running(service, access, access_log, provider, tracer)),
    )


def _api(service: Service, access: AccessControl, *, with_keys: bool) -> FastAPI:
    """Return the app with all routes but those of inference."""
    settings, names = service.settings, service.repository.models.names
    api = FastAPI(
        title=names[0] if len(names) == 1 and not with_keys else "cpt-deploy",
        summary="Integer networks trained with Cyclic Precision Training, served by cpt-deploy.",
        version=cpt_deploy.__version__,
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    api.state.access = access
    add_error_handlers(api, lambda request: access.check(request.scope["headers"], Scope.INFER))
    for make_router in ROUTERS:
        api.include_router(make_router(service))
    if settings.docs:
        api.include_router(docs_router(api, service, with_keys=with_keys))
    if settings.page:
        api.include_router(page_router(service))
    elif settings.docs:
        api.add_api_route("/", _to_docs, include_in_schema=False, dependencies=[requires(None, any_query=True)])
    return api


def _origins(settings: ServeSettings) -> list[Middleware]:
    allowed = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    guard = Middleware(OriginGuard, allowed=allowed)
    if not allowed:
        return [guard]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=allowed,
        allow_methods=["GET", "POST"],
        allow_headers=_CORS_REQUEST_HEADERS,
        expose_headers=_CORS_ANSWER_HEADERS,
    )
    return [cors, guard]


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("docs")


@dataclass(frozen=True)
class _Running:
    """What runs as long as the app does."""

    service: Service
    access: AccessControl
    access_log: AccessLog | None
    provider: TracerProvider | None
    tracer: Tracer | None

    def grpc(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which gRPC calls are answered, if they are."""
        if self.service.settings.grpc_port is None:
            return nullcontext()
        from cpt_serving.grpc_api.server import running_grpc

        return running_grpc(self.service, self.access, self.access_log, self.tracer)


def _lifespan(parts: _Running) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        try:
            async with running(parts.service), parts.grpc():
                yield
        finally:
            if parts.access_log is not None:
                await anyio.to_thread.run_sync(parts.access_log.close)
            await finished(lambda: close_tracing(parts.provider), parts.service.shutdown.remaining_s + _EXPORT_S)

    return lifespan
