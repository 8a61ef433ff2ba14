"""Messages over gRPC that do not arrive completely."""

import asyncio
import socket
import threading

import pytest

from cpt_serving import load_settings
from cpt_serving.web.errors import RequestError

grpc = pytest.importorskip("grpc", reason="pip install '.[grpc]'")
pytest.importorskip("tritonclient.grpc", reason="pip install '.[grpc]'")
from grpc_health.v1 import health_pb2  # noqa: E402
from tritonclient.grpc import service_pb2  # noqa: E402

from cpt_serving.grpc_api.receiving import Reception  # noqa: E402

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def channel(serve, shared_bundle):
    """A channel to a server that waits a second for a message."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (
        serve(shared_bundle, "--grpc-port", str(port), body_timeout_s=1) as _,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@pytest.fixture
def silence():
    """Messages of a client that sends none, and does not say so, until the test ends."""
    ended = threading.Event()

    def messages():
        ended.wait()
        yield from ()

    yield messages()
    ended.set()


def test_the_message_of_a_call_is_not_waited_for_without_end(channel, silence):
    with pytest.raises(grpc.RpcError) as late:
        list(channel.stream_stream(f"{SERVICE}ModelInfer")(silence, timeout=60))
    assert (late.value.code(), "Expected the message within 1 s" in late.value.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        True,
    )


def test_an_empty_message_is_not_waited_for(channel, silence):
    answers = list(channel.stream_stream(f"{SERVICE}ServerLive")(silence, timeout=60))
    assert [service_pb2.ServerLiveResponse.FromString(each).live for each in answers] == [True]


@pytest.mark.parametrize(
    ("messages", "code"),
    [([], "INVALID_ARGUMENT"), ([b"\x0a\xff"], "INVALID_ARGUMENT"), ([bytes(20_000)], "RESOURCE_EXHAUSTED")],
    ids=["none", "another", "a large one"],
)
def test_a_wrong_message_about_health_is_refused(channel, messages, code):
    with pytest.raises(grpc.RpcError) as refused:
        list(channel.stream_stream("/grpc.health.v1.Health/Check")(iter(messages), timeout=60))
    assert refused.value.code().name == code


class Arriving:
    """The context of a call whose message arrives when its event is set."""

    def __init__(self):
        self.arrived, self.reading = asyncio.Event(), False

    async def read(self):
        self.reading = True
        await self.arrived.wait()
        return b""


def reception(shared_bundle, timeout_s=60):
    sizes = {"max_body_bytes": 1000, "max_memory_bytes": 2500}
    return Reception(load_settings(bundle=shared_bundle.path, body_timeout_s=timeout_s, **sizes))


def test_no_more_messages_arrive_than_fit_into_the_memory(shared_bundle):
    async def check():
        receiving, contexts = reception(shared_bundle), [Arriving() for _ in range(4)]
        tasks = [asyncio.create_task(receiving.message(each, None, large=True)) for each in contexts]
        await asyncio.sleep(0.01)
        assert [each.reading for each in contexts] == [True, True, False, False]
        contexts[0].arrived.set()
        await tasks[0]
        await asyncio.sleep(0.01)
        assert [each.reading for each in contexts] == [True, True, True, False]
        # Small messages do not wait for large ones.
        small = Arriving()
        small.arrived.set()
        request = await receiving.message(small, health_pb2.HealthCheckRequest.FromString, large=False)
        assert request == health_pb2.HealthCheckRequest()
        for each in contexts:
            each.arrived.set()
        await asyncio.gather(*tasks)

    asyncio.run(check())


def test_a_message_for_which_no_memory_becomes_free_is_refused(shared_bundle):
    async def check():
        receiving = reception(shared_bundle, timeout_s=0.05)
        calls = [receiving.message(Arriving(), None, large=True) for _ in range(20)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, RequestError) for each in errors)
        assert {each.status for each in errors} == {408, 503}

    asyncio.run(check())
