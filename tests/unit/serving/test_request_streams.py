"""Streams of requests, good and broken, in any pieces: what the server makes of them is what h11 does, or less."""

import asyncio
import itertools
import re

import h11
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from cpt_serving.web.connections import Connections, _Joined

LONGEST_HEAD = 1024


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.writes, self.closed = [], False

    @property
    def written(self):
        return b"".join(self.writes)

    def write(self, data):
        if not self.closed:
            self.writes.append(data)

    def close(self):
        self.closed = True

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        """Ignore it: what is paused here comes nevertheless."""

    def resume_reading(self):
        """Ignore it."""


async def served(pieces, turns=1):
    """Return the requests that an app gets whole, and what goes back over the wire."""
    requests = []

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        requests.append((scope["method"], scope["path"], list(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        for _ in range(turns):
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    config.load()
    connections, wire = Connections(limit=1, max_head_bytes=LONGEST_HEAD, head_timeout_s=60), Wire()
    protocol = connections.protocol(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(wire)
    for piece in pieces:
        if wire.closed:
            break
        protocol.data_received(piece)
        for _ in range(60):  # until the app has done with what is there
            await asyncio.sleep(0)
    protocol.connection_lost(None)
    while protocol.tasks:
        await asyncio.sleep(0)
    return requests, wire


def read_by_h11(stream):
    """Return the whole requests that h11 finds in a stream."""
    requests = []
    try:
        while stream:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10_000)
            # httptools passes over line ends before a request and further spaces in its first line, which h11 does not.
            connection.receive_data(re.sub(rb"^([A-Z]+) +(\S+) +", rb"\1 \2 ", stream.lstrip(b"\r\n")))
            head, body = connection.next_event(), b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                break
            headers = [(bytes(name), bytes(value)) for name, value in head.headers]
            requests.append((head.method.decode(), head.target.partition(b"?")[0].decode(), headers, body))
            connection.send(h11.Response(status_code=200, headers=[]))
            connection.send(h11.EndOfMessage())
            stream = b"" if connection.our_state is h11.MUST_CLOSE else connection.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return requests


def comparable(requests):
    """Return requests as they are to be compared: codings as h11 spells them, no offers to upgrade."""
    return [
        (
            method,
            path,
            [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in headers if n != b"upgrade"],
            body,
        )
        for method, path, headers, body in requests
    ]


NAMES = st.sampled_from([b"X-A", b"Accept", b"x-b", b"Connection", b"Upgrade", b"Expect", b"TE"])
VALUES = st.sampled_from([b"1", b"a b", b" padded \t", b"keep-alive", b"Upgrade", b"h2c", b"", b"\xe4", b"a" * 200])
BODIES = st.binary(max_size=40) | st.sampled_from(
    [b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n"]
)


@st.composite
def valid_request(draw):
    """A request that every server reads alike."""
    headers = [
        b"Host: x",
        *(name + b": " + value for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))),
    ]
    method, path = (
        draw(st.sampled_from([b"GET", b"POST", b"DELETE"])),
        draw(st.sampled_from([b"/", b"/a/b", b"/c?d=e"])),
    )
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "length":
        body = draw(BODIES)
        headers.append(b"Content-Length: %d" % len(body))
    if framing == "chunked":
        headers.append(draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked"])))
        for chunk in draw(st.lists(BODIES.filter(len), max_size=3)):
            body += b"%x%s\r\n%s\r\n" % (len(chunk), draw(st.sampled_from([b"", b";a=b"])), chunk)
        body += (
            b"0\r\n"
            + draw(st.sampled_from([b"", b"X-Trailer: 1\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"]))
            + b"\r\n"
        )
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", *draw(st.permutations(headers)), b"", b""]) + body


def in_pieces(stream, cuts):
    """Return a stream cut at some places."""
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 1500), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(valid_request(), min_size=1, max_size=4), CUTS)
def test_valid_requests_are_read_as_by_h11_however_they_are_cut(requests, cuts):
    stream = b"".join(requests)
    found, _ = asyncio.run(served(in_pieces(stream, cuts)))
    assert comparable(found) == comparable(read_by_h11(stream))
    assert len(found) == len(requests)


ODD = st.sampled_from([
    b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"0", b"1", b",", b";", b"\x00", b"\xff", b"\r\n ", b"HTTP/1.0",
    b"CONNECT ", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Host: y\r\n",
])  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(valid_request(), min_size=1, max_size=3), st.data(), CUTS)
def test_of_broken_streams_no_request_is_read_that_h11_does_not_read(requests, data, cuts):
    stream = b"".join(requests)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(stream)))
        stream = stream[:place] + data.draw(ODD | st.just(b"")) + stream[place + data.draw(st.integers(0, 2)) :]
    found, wire = asyncio.run(served(in_pieces(stream, cuts)))
    reference = comparable(read_by_h11(stream))
    assert comparable(found) == reference[: len(found)]
    assert wire.written.count(b"HTTP/1.1 200") <= len(found)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "refused",
    [
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Host: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        HEAD + b"X: %s\r\n\r\n" % (b"a" * LONGEST_HEAD),
        HEAD + b"X: %s\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n" % (b"a" * LONGEST_HEAD),
        b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * LONGEST_HEAD),
    ],
    ids=["coding", "two framings", "two lengths", "two hosts", "no host", "0.9", "2.0", "connect", "bare line feeds",
         "head", "head with an offer", "path"],
)  # fmt: skip
@pytest.mark.parametrize("size", [100, 100_000], ids=["pieces", "at once"])
def test_what_others_could_read_otherwise_or_is_too_large_is_400(refused, size):
    pieces = [refused[start : start + size] for start in range(0, len(refused), size)]
    requests, wire = asyncio.run(served(pieces))
    assert (requests, wire.closed) == ([], True)
    assert wire.written.startswith(b"HTTP/1.1 400")


def test_a_broken_request_behind_a_good_one_does_not_take_its_answer():
    requests, wire = asyncio.run(served([b"GET /good HTTP/1.1\r\nHost: x\r\n\r\nBROKEN\r\n\r\n"]))
    assert [path for _, path, *_ in requests] == ["/good"]
    assert (wire.written.startswith(b"HTTP/1.1 200"), wire.closed) == (True, True)
    assert wire.written.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("endless", [b"3;a", b"0", b"0\r\nX: a"], ids=["extension", "size", "trailer"])
def test_what_stands_around_chunks_is_bounded(endless):
    pieces = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless, *[endless[-1:] * 100] * 1000]
    fed = []
    requests, wire = asyncio.run(served(fed.append(piece) or piece for piece in pieces))
    assert requests == []
    assert wire.written.startswith(b"HTTP/1.1 400")
    assert sum(map(len, fed)) < 2 * LONGEST_HEAD


@pytest.mark.parametrize(("turns", "packets"), [(0, 1), (5, 2)], ids=["at once", "later"])
def test_head_and_body_of_an_answer_leave_together_unless_the_body_is_still_to_come(turns, packets):
    _, wire = asyncio.run(served([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], turns))
    assert len(wire.writes) == packets
    assert wire.written.endswith(b"\r\n\r\nok")


def test_an_answer_to_a_client_that_left_goes_nowhere():
    async def serve():
        wire = Wire()
        answers = _Joined(wire, asyncio.get_running_loop(), wire.close)
        answers.write(b"HTTP/1.1 200 OK\r\n\r\n")
        wire.closed = True
        wire.write = pytest.fail  # as uvloop's, which raises for a closed connection
        answers.write(b"ok")
        await asyncio.sleep(0)
        answers.write(b"more")

    asyncio.run(serve())
