"""Running the gRPC server beside the web server, on a port of its own and the same event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection
from opentelemetry.trace import Tracer

from cpt_serving.access.control import AccessControl
from cpt_serving.certificates import Certificate
from cpt_serving.grpc_api.calls import STREAMS_PER_CONNECTION
from cpt_serving.grpc_api.edge import SERVICE, CallEdge
from cpt_serving.grpc_api.health import Health
from cpt_serving.grpc_api.servicer import handlers
from cpt_serving.open_files import possible_connections
from cpt_serving.service import Service
from cpt_serving.telemetry.access_log import AccessLog

_UNASKED_BYTES = 64 * 1024 - 1
"""How much of a message a client can send before the server asks for it; HTTP/2 begins with this much anyway."""

_PING_MS = 15_000
"""A client that vanished is noticed after twice this time, as over HTTP."""


@asynccontextmanager
async def running_grpc(
    service: Service, access: AccessControl, access_log: AccessLog | None, tracer: Tracer | None
) -> AsyncIterator[None]:
    """Answer gRPC calls while the context is open; once the server stops, calls in progress may finish.

    Args:
        service: The service that answers.
        access: Checks the API keys.
        access_log: Log of calls, if they are logged.
        tracer: Creates spans, if calls are traced.
    """
    settings, shutdown = service.settings, service.shutdown
    most_connections, _ = possible_connections(settings)
    head_ms = max(1, round(1e3 * settings.head_timeout_s))
    edge = CallEdge(service, access, access_log, tracer)
    server = grpc.aio.server(
        interceptors=[edge],
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.lookahead_bytes", _UNASKED_BYTES),
            ("grpc.http2.bdp_probe", 0),  # It would raise that number.
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", most_connections),
            ("grpc.server_handshake_timeout_ms", head_ms),
            ("grpc.max_connection_idle_ms", head_ms),
            ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
            ("grpc.keepalive_time_ms", _PING_MS),
            ("grpc.keepalive_timeout_ms", _PING_MS),
        ],
    )
    server.add_generic_rpc_handlers((handlers(service, edge),))
    add_HealthServicer_to_server(Health(service), server)
    enable_server_reflection((SERVICE, HEALTH, REFLECTION), server)
    address = f"{_bracketed(settings.host)}:{settings.grpc_port}"
    if service.certificate is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, _credentials(service.certificate))
    await server.start()

    async def stop() -> None:
        await shutdown.stopping()
        await server.stop(shutdown.remaining_s)

    # Not at the end of the context: by then the web server has used up the time that both share.
    stopping = asyncio.create_task(stop())
    try:
        yield
    finally:
        shutdown.stop()
        await stopping


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return credentials with the web server's certificate, which is fetched anew for each handshake."""
    shown = certificate.version

    def current() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if shown == certificate.version:
            return None
        shown = certificate.version
        return grpc.ssl_server_certificate_configuration([certificate.pem()])

    initial = grpc.ssl_server_certificate_configuration([certificate.pem()])
    return grpc.dynamic_ssl_server_credentials(initial, current)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
