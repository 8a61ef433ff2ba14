"""Limits on calls over gRPC: on their number by kind, on streams that wait, on answers that nobody reads."""

import asyncio
import contextlib
import socket

import pytest

from cpt_serving.access.api_keys import add_key
from cpt_serving.web.errors import RequestError

grpc = pytest.importorskip("grpc", reason="pip install '.[grpc]'")
pytest.importorskip("tritonclient.grpc", reason="pip install '.[grpc]'")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

from cpt_serving.grpc_api import calls  # noqa: E402

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""Of a client over HTTP/2: its first bytes, and empty settings."""

MOST = 4
"""Calls at once of the server in these tests."""


@pytest.fixture(scope="module")
def server(serve, shared_bundle, tmp_path_factory):
    """The port of a server with few places for calls, and the metadata with its key."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    key = add_key(file, "shop", ["infer"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with serve(shared_bundle, "--grpc-port", str(port), api_keys=file, max_connections=MOST, head_timeout_s=1):
        yield port, [("x-api-key", key)]


def test_streams_without_a_key_take_no_place_from_calls(server):
    port, key = server
    # Without the option both channels share a connection.
    strangers = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
    with strangers, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        watching = health_pb2_grpc.HealthStub(strangers)
        watches = [watching.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(10 * MOST)]
        for watch in watches:
            next(watch)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(service_pb2.ModelReadyRequest(name="colours"), metadata=key, timeout=60).ready
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=60).live


def test_silent_connections_are_few_and_are_closed(server):
    port, _ = server
    opened = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(5 * MOST)]
    for each in opened[::2]:
        with contextlib.suppress(OSError):  # closed already
            each.sendall(PREFACE)
    for each in opened:
        with each, contextlib.suppress(ConnectionResetError):
            while each.recv(1000):  # until the server closes it
                pass
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=60).live


def test_a_kind_of_calls_is_refused_beyond_its_places_until_one_has_ended():
    places, finish = calls.Places(1), asyncio.Event()

    async def call():
        places.take()
        await finish.wait()

    async def check():
        first = asyncio.create_task(call())
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await call()
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
        finish.set()
        await first
        await asyncio.create_task(call())

    asyncio.run(check())


def test_a_stream_of_requests_ends_when_none_comes(monkeypatch):
    monkeypatch.setattr(calls, "_IDLE_STREAM_S", 0.01)

    async def requests():
        yield b"one"
        await asyncio.Event().wait()

    async def received():
        return [request async for request in calls.until_idle(requests())]

    assert asyncio.run(received()) == [b"one"]


def test_an_answer_that_nobody_reads_ends_its_call(monkeypatch):
    monkeypatch.setattr(calls, "_UNREAD_S", 0.01)

    class Context:
        async def write(self, answer):
            await asyncio.Event().wait()

    with pytest.raises(RequestError) as unread:
        asyncio.run(calls.send(Context(), b""))
    assert unread.value.status == 408


def test_a_single_answer_that_nobody_reads_ends_its_call_too(monkeypatch):
    monkeypatch.setattr(calls, "_UNREAD_S", 0.01)

    async def call():
        calls.end_unless_read()
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())
