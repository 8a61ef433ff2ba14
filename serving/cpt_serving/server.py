"""Running the app under uvicorn: the port, the workers, and the way to a clean end."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import SIGNALS

from cpt_deploy.errors import UsageError
from cpt_serving.app import app_of, create_service
from cpt_serving.grpc_api import require_grpc
from cpt_serving.repository.orders import ORDERS_VARIABLE
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.startup_checks import check_settings, warn_if_exposed
from cpt_serving.telemetry.metrics import MULTIPROCESS_VARIABLE
from cpt_serving.telemetry.server_log import log_config
from cpt_serving.web.connections import TimedConfig

APP_PATH = "cpt_serving.app:create_app"

_UNACKNOWLEDGED_MS = 30_000


def run(settings: ServeSettings, *, on_listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; both end in order, and this function returns.

    The models are loaded and checked before anything listens, so that what is wrong with them is one error here.

    Args:
        settings: What to serve and how.
        on_listening: Called with the server's address once the port is taken, before requests are answered.

    Raises:
        BundleError: If no bundle can be opened and loaded.
        ValidationFailedError: If none reproduces its golden sample, or has the evidence that is required.
        MissingExtraError: If gRPC or tracing is wanted and not installed.
        UsageError: If an address cannot be listened on or the execution provider is not available.
        DataError: If the API keys, the certificate or the access log cannot be used.
    """
    check_settings(settings)
    if settings.grpc_port is not None:
        require_grpc()
        _listen(settings.host, settings.grpc_port).close()
    service = create_service(settings)
    service.repository.load_now()
    with _listen(settings.host, settings.port) as listener, _prepared(settings, service, listener) as serve:
        if on_listening is not None:
            on_listening(_address(settings, listener))
        warn_if_exposed(settings, listener.getsockname()[0])
        serve()


def _config(settings: ServeSettings, app: str | Callable[[], object]) -> uvicorn.Config:
    return TimedConfig(
        head_timeout_s=settings.head_timeout_s,
        max_head_bytes=settings.max_head_bytes,
        app=app,
        factory=True,
        workers=settings.workers,
        log_config=log_config(settings),
        log_level=settings.log_level,
        access_log=False,  # The app writes its own.
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


@contextmanager
def _prepared(settings: ServeSettings, service: Service, listener: socket.socket) -> Iterator[Callable[[], None]]:
    """Give what serves until the end; SIGTERM and SIGINT end it in order from now on, even before it is called."""
    if settings.workers > 1:
        with _workers(settings, listener) as workers:
            yield workers.run
    else:
        server = uvicorn.Server(_config(settings, lambda: app_of(service)))
        with _quiet_end(server):
            yield lambda: server.run(sockets=[listener])


@contextmanager
def _workers(settings: ServeSettings, listener: socket.socket) -> "Iterator[_Workers]":
    """Give several processes on one socket; one that dies is replaced. They get their settings by environment."""
    with tempfile.TemporaryDirectory(prefix="cpt-serve-") as shared:
        metrics, orders = Path(shared, "metrics"), Path(shared, "orders")
        metrics.mkdir()
        orders.mkdir()
        variables = {MULTIPROCESS_VARIABLE: str(metrics), ORDERS_VARIABLE: str(orders)}
        with _environment({**settings.to_environment(), **variables}), _handlers_restored(SIGNALS):
            yield _Workers(_config(settings, APP_PATH), sockets=[listener])


class _Workers(Multiprocess):
    """uvicorn's worker processes; what a dead one had under way no longer counts."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that died."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for dead in before - {process.pid for process in self.processes}:
            mark_process_dead(dead)  # type: ignore[no-untyped-call]


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        UsageError: If it cannot be.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"Expected an address to listen on, but got {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        # A port whose last server ended a moment ago is free; one with a server on it still is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it: a client that is gone, or does not take its answer, is not kept for ever.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        listener.bind(address)
        # Two sockets can be bound to one port as long as neither listens; this finds the other server.
        listener.listen(2048)
        listener.set_inheritable(True)
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


@contextmanager
def _quiet_end(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the server without ending the process by signal.

    uvicorn finishes its work and then raises the signal again, for the handlers that were there before it; one that
    comes before it has begun must not be lost either.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        server.should_exit = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    with _handlers_restored(numbers):
        for number in numbers:
            signal.signal(number, end)
        yield


@contextmanager
def _handlers_restored(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Put the handlers of signals back afterwards."""
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
