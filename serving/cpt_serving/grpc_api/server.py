"""Running the gRPC form of the protocol beside the web server, on a port of its own and the same event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from cpt_serving.grpc_api.servicer import handlers
from cpt_serving.service import Service


@asynccontextmanager
async def running_grpc(service: Service, port: int) -> AsyncIterator[None]:
    """Answer gRPC calls while the context is open; calls under way are finished when it ends.

    Args:
        service: What answers.
        port: Where; workers share it.
    """
    settings = service.settings
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ]
    )
    server.add_generic_rpc_handlers((handlers(service),))
    server.add_insecure_port(f"{_bracketed(settings.host)}:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(settings.shutdown_s)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
