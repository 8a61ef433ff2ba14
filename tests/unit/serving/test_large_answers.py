"""Long answers: their memory counts until clients have read them, and clients that do not read are cut off."""

import asyncio

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from cpt_serving.inference.batching import Inference
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.telemetry.records import RequestRecord, current_record, note_inference
from cpt_serving.web import connections
from cpt_serving.web.bodies import BodyBudget, charge
from cpt_serving.web.connections import Connections
from cpt_serving.web.middleware import RequestEdge

SIZE = 1_000_000
MOST_BUFFERED = 3 * 65_536


class SlowClient(asyncio.Transport):
    """A transport whose client reads only when the test says so, with the flow control of asyncio."""

    def __init__(self):
        super().__init__()
        self.buffered = self.read = b""
        self.protocol, self.aborted = None, asyncio.Event()

    def write(self, data):
        self.buffered += data
        if len(self.buffered) > 65_536:
            self.protocol.pause_writing()

    def read_all(self):
        self.read, self.buffered = self.read + self.buffered, b""
        self.protocol.resume_writing()

    def is_closing(self):
        return self.aborted.is_set()

    def pause_reading(self):
        """Ignore it: nothing more is sent."""

    def resume_reading(self):
        """Ignore it."""

    def abort(self):
        if not self.aborted.is_set():
            self.aborted.set()
            self.protocol.connection_lost(ConnectionAbortedError())


def connect(framing):
    """Return a client that has sent a request, and the budget of the server that answers it."""
    budget = BodyBudget(2 * SIZE)

    async def app(scope, receive, send):
        charge(SIZE)
        headers = [(b"content-length", b"%d" % SIZE)] if framing == "length" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(range(250)) * (SIZE // 250)})

    edge = RequestEdge(app, budget=budget, body_timeout_s=60, metrics=Metrics())
    config = uvicorn.Config(edge, log_config=None, access_log=False, lifespan="off", interface="asgi3")
    config.load()
    client = SlowClient()
    client.protocol = Connections(limit=1, max_head_bytes=1024, head_timeout_s=60).protocol(
        config=config, server_state=ServerState(), app_state={}
    )
    client.protocol.connection_made(client)
    client.protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return client, budget


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


def test_memory_of_an_answer_counts_until_its_client_has_read_it():
    async def scenario(framing):
        client, budget = connect(framing)
        await turns()
        read_in = 0
        while client.buffered:
            assert len(client.buffered) < MOST_BUFFERED
            if len(client.read) + len(client.buffered) < SIZE:
                assert budget.taken == SIZE
            client.read_all()
            read_in += 1
            await turns()
        assert budget.taken == 0
        assert read_in > 5
        assert not client.protocol.busy
        body = client.read.partition(b"\r\n\r\n")[2]
        assert len(body) == SIZE or framing == "chunks"
        client.abort()

    for framing in ("length", "chunks"):
        asyncio.run(scenario(framing))


def test_a_client_that_does_not_read_is_cut_off_and_its_memory_is_free(monkeypatch):
    monkeypatch.setattr(connections, "_STALLED_S", 0.0)

    async def scenario():
        client, budget = connect("length")
        await asyncio.wait_for(client.aborted.wait(), 30)
        await turns()
        assert budget.taken == 0
        assert len(client.buffered) < MOST_BUFFERED

    asyncio.run(scenario())


def test_outputs_do_not_live_until_the_answer_is_read():
    token = current_record.set(RequestRecord("id"))
    note_inference(Inference({"y": np.zeros(9)}, 1, 0.0, 1.0, 2.0, 3))
    assert current_record.get().inference == Inference({}, 1, 0.0, 1.0, 2.0, 3)
    current_record.reset(token)
