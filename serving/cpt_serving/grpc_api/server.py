"""Running the gRPC form of the protocol beside the web server, on a port of its own and the same event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from cpt_serving.access.api_keys import KeyRing
from cpt_serving.grpc_api.access import KeyInterceptor
from cpt_serving.grpc_api.servicer import handlers
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings


@asynccontextmanager
async def running_grpc(service: Service, port: int, keys: KeyRing | None) -> AsyncIterator[None]:
    """Answer gRPC calls while the context is open; calls under way are finished when it ends.

    Args:
        service: What answers.
        port: Where; workers share it.
        keys: The API keys, if calls need one.
    """
    settings = service.settings
    server = grpc.aio.server(
        interceptors=[KeyInterceptor(keys, service.metrics)],
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ],
    )
    server.add_generic_rpc_handlers((handlers(service),))
    address = f"{_bracketed(settings.host)}:{port}"
    if settings.tls_cert is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, _credentials(settings, settings.tls_cert))
    await server.start()
    try:
        yield
    finally:
        await server.stop(settings.shutdown_s)


def _credentials(settings: ServeSettings, certificate: Path) -> grpc.ServerCredentials:
    """Return the certificate that the web server shows too."""
    key = settings.tls_key or certificate
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
