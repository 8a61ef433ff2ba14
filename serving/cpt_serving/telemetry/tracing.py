"""OpenTelemetry: a span for each request, with its wait in the queue and its inference as children.

Exporting needs the extra `otel`, and is configured by OpenTelemetry's own variables.
"""

import importlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import propagate, trace
from starlette.types import Scope

import cpt_deploy
from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.access_log import QUIET_ROUTES
from cpt_serving.telemetry.records import RequestRecord

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FIRST_FAULT = 500


def open_tracing(settings: ServeSettings) -> trace.TracerProvider | None:
    """Return a provider that creates and exports spans, if the settings or OpenTelemetry's variables ask for it.

    Raises:
        MissingExtraError: If the settings ask for it and the extra is not installed.
        UsageError: If OpenTelemetry's variables contradict each other.
    """
    asked = any(os.environ.get(name) for name in _ENDPOINTS) and os.environ.get("OTEL_TRACES_EXPORTER") != "none"
    if settings.tracing == "off" or (settings.tracing == "auto" and not asked):
        return None
    try:
        require_tracing()
    except MissingExtraError as error:
        if settings.tracing == "on":
            raise
        logger.warning("requests are not traced: %s (%s)", error.message, error.hint)
        return None
    return _exporting_provider()


def require_tracing() -> None:
    """Raise a MissingExtraError unless the packages that export spans are installed.

    Other exporters have the same package `opentelemetry.exporter`, so the modules themselves are imported.
    """
    for name in ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(f"{name} is not installed", extra="otel") from error


def _exporting_provider() -> trace.TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.version": cpt_deploy.__version__}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        about["service.name"] = "cpt-serve"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    try:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise UsageError(f"Expected variables OTEL_BSP_* that fit each other, but got: {error}") from error
    return provider


def close_tracing(provider: trace.TracerProvider | None) -> None:
    """Export the waiting spans, and end; can take as long as the exporter's timeout."""
    shutdown = getattr(provider, "shutdown", None)
    if shutdown is not None:
        shutdown()


def server_span(
    tracer: trace.Tracer | None, route: str, carrier: Mapping[str, Any], attributes: Mapping[str, str]
) -> AbstractContextManager[trace.Span]:
    """Return the span of a request, in the client's trace if the carrier names one; routes of machines have none.

    Args:
        tracer: Creates spans, if requests are traced.
        route: Path of the request or full name of the call, `/SERVICE/NAME`.
        carrier: Headers of the request or metadata of the call.
        attributes: Attributes of the span that are known at its start.
    """
    if tracer is None or route in QUIET_ROUTES:
        return nullcontext(trace.INVALID_SPAN)
    return tracer.start_as_current_span(
        route.removeprefix("/"),
        propagate.extract(carrier),
        trace.SpanKind.SERVER,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    )


def request_span(tracer: trace.Tracer | None, scope: Scope) -> AbstractContextManager[trace.Span]:
    """Return the span of an HTTP request by OpenTelemetry's conventions."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    attributes = {
        "http.request.method": scope["method"],
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    if "user-agent" in headers:
        attributes["user_agent.original"] = headers["user-agent"]
    return server_span(tracer, scope["path"], headers, attributes)


def request_answered(span: trace.Span, method: str, route: str, status: int) -> None:
    """Name the span of an HTTP request by its route, and add the status of the answer."""
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= _FIRST_FAULT:
        span.set_attribute("error.type", str(status))
        span.set_status(trace.StatusCode.ERROR)


def current_trace() -> trace.SpanContext | None:
    """Return the span of the current request, or `None` if it is not traced."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


def trace_inference(tracer: trace.Tracer, record: RequestRecord) -> None:
    """Add the spans of a finished inference to the current request's span, with their recorded times."""
    inference = record.inference
    if inference is None:
        return
    asked = time.time_ns() - round((time.monotonic() - record.asked_at) * 1e9)
    begun = asked + round(inference.queue_ms * 1e6)
    model: dict[str, str | int] = {
        "cpt.model.name": record.model,
        "cpt.model.version": record.version,
        "cpt.rows": record.rows,
    }
    tracer.start_span("queue", attributes=model, start_time=asked).end(begun)
    span = tracer.start_span(
        "inference", attributes={**model, "cpt.batch_rows": inference.batch_rows}, start_time=begun
    )
    span.end(begun + round(inference.inference_ms * 1e6))
