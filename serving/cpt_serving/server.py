"""Running the app under uvicorn: listening, signals, and a clean shutdown."""

import asyncio
import functools
import gc
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from cpt_deploy.errors import UsageError
from cpt_serving.app import app_of, create_service
from cpt_serving.grpc_api import require_grpc
from cpt_serving.open_files import possible_connections
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.server_log import logging_to_stderr
from cpt_serving.web.connections import Connections
from cpt_serving.web.handshakes import accept

logger = logging.getLogger(__name__)

_UNACKNOWLEDGED_MS = 30_000
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S, _GOODBYE_S = 0.1, 0.5
_SPARE_S = 4.0
"""Time after the shutdown deadline in which resources are released."""


def run(settings: ServeSettings, *, on_listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, shut down in order, and return. SIGHUP checks all files for changes.

    The models are loaded and checked before the server listens, so that an unusable model is an error of this call.

    Args:
        settings: What to serve and how.
        on_listening: Called with the server's address once the port is bound, before requests are answered.

    Raises:
        BundleError: If no bundle can be opened and loaded.
        ValidationFailedError: If no bundle reproduces its golden sample or has the required evidence.
        MissingExtraError: If gRPC or tracing is requested and not installed.
        UsageError: If an address cannot be bound or the execution provider is not available.
        DataError: If the API keys, the certificate or the access log cannot be used.
    """
    if settings.grpc_port is not None:
        require_grpc()
        _listen(settings.host, settings.grpc_port).close()
    with logging_to_stderr(settings) as log:
        service = create_service(settings)
        log.dropped = service.metrics.server_line_dropped
        app = app_of(service)
        service.repository.load_now()
        with _listen(settings.host, settings.port) as listener, _kept_signals() as early:
            if on_listening is not None:
                on_listening(_address(settings, listener))
            warn_if_exposed(settings, listener.getsockname()[0])
            config, connections = _prepared(service, app)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(_serve(uvicorn.Server(config), listener, service, connections, early))


def _prepared(service: Service, app: ASGIApp) -> tuple[uvicorn.Config, Connections]:
    """Return the configuration of the web server, loaded, and the tracker of its connections."""
    settings = service.settings
    connections = Connections(
        limit=_most_connections(settings),
        max_head_bytes=settings.max_head_bytes,
        head_timeout_s=settings.head_timeout_s,
        refused=service.metrics.connection_refused,
    )
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", connections.protocol),  # a factory works as well as a class
        ws="none",
        log_config=None,
        access_log=False,  # The app writes its own access log.
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
    )
    config.load()
    # Objects that exist before the first request live until the end: exempt them from garbage collection.
    gc.collect()
    gc.freeze()
    return config, connections


def _most_connections(settings: ServeSettings) -> int:
    """Return how many connections are possible on each port; log a warning if they are fewer than allowed."""
    possible, files = possible_connections(settings)
    if possible < settings.max_connections:
        logger.warning(
            "%d connections at a time instead of %d, since this process may open %d files: ulimit -n or LimitNOFILE "
            "allows more",
            possible,
            settings.max_connections,
            files,
        )
    return possible


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address.

    Raises:
        UsageError: If it cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"Expected an address to listen on, but got {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        # Lets a port be bound right after its last server ended; a port with a running server is still refused.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit this: a client that is gone or does not read its answer is dropped eventually.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        listener.bind(address)
        # Two sockets can be bound to one port as long as neither listens; listening detects the other server.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"Expected to listen on {host}:{port}, but got: {error.strerror or error}",
            hint="choose another port (0 takes a free one) or stop the server that has it",
        ) from error
    return listener


def _address(settings: ServeSettings, listener: socket.socket) -> str:
    host = settings.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'http' if settings.tls_cert is None else 'https'}://{shown}:{listener.getsockname()[1]}"


async def _serve(
    server: uvicorn.Server, listener: socket.socket, service: Service, connections: Connections, early: list[int]
) -> None:
    """Serve until a signal requests the shutdown."""
    certificate = service.certificate
    serving = asyncio.create_task(server.serve(sockets=[] if certificate else [listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_S / 10)
    accepting = None
    if certificate is not None:
        protocol = functools.partial(
            connections.protocol,
            config=server.config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
        )
        accepting = asyncio.create_task(accept(listener, connections, certificate.context, protocol))
    shutdown, settings = service.shutdown, service.settings
    # Ends the process even if native code or a thread blocks the shutdown.
    watchdog = threading.Timer(settings.drain_s + settings.shutdown_s + _SPARE_S, os._exit, (1,))
    watchdog.daemon = True

    def begin() -> None:
        connections.drain()
        if not shutdown.draining:
            watchdog.start()
        shutdown.begin()

    def stop() -> None:
        begin()
        shutdown.stop()

    def reload() -> None:
        service.repository.look_again()
        if certificate is not None:
            certificate.reload()

    _handle({signal.SIGTERM: begin, signal.SIGINT: stop, signal.SIGHUP: reload}, early)
    if server.should_exit:  # by a signal that the web server still handled itself
        stop()
    end = asyncio.create_task(_end(server, serving, service, connections, accepting))
    try:
        await serving
    finally:
        end.cancel()
        watchdog.cancel()


async def _end(
    server: uvicorn.Server,
    serving: "asyncio.Task[None]",
    service: Service,
    connections: Connections,
    accepting: "asyncio.Task[None] | None",
) -> None:
    """Stop the web server when the shutdown asks for it, and cut connections that it need not wait for."""
    await service.shutdown.stopping()
    if accepting is not None:
        accepting.cancel()
        await asyncio.wait([accepting])
    server.should_exit = True
    # The web server has closed idle connections by now; under TLS it would wait for the clients' close_notify.
    await asyncio.sleep(_GOODBYE_S)
    while not serving.done():
        connections.cut(all_of_them=service.shutdown.remaining_s == 0)
        await asyncio.sleep(_POLL_S)


def warn_if_exposed(settings: ServeSettings, address: str) -> None:
    """Log a warning if other machines can reach the address and no API key is required.

    Args:
        settings: Settings of the server, for whether there are keys.
        address: Address of the listening socket.
    """
    if settings.api_keys is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        logger.warning(
            "everyone who can reach %s can send requests and read the metrics: --api-keys FILE requires a key, "
            "and without --host only this machine can connect",
            address,
        )


@contextmanager
def _kept_signals() -> Iterator[list[int]]:
    """Record signals that arrive before or after they can be handled, instead of letting them end the process."""
    kept: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield kept
        return
    previous = {number: signal.signal(number, lambda number, _frame: kept.append(number)) for number in _NUMBERS}
    try:
        yield kept
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _handle(handlers: Mapping[signal.Signals, Callable[[], None]], early: Iterable[int]) -> None:
    """Handle signals on the event loop from now on, including those recorded before."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, handle)
    for kept in early:
        handle(kept, None)
