"""What a client can do to a connection, byte by byte, against a real server."""

import contextlib
import json
import resource
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from cpt_serving import load_settings
from cpt_serving.open_files import possible_connections

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared_bundle, running_server):
    """Process and address of a server."""
    with running_server(tmp_path_factory.mktemp("server"), shared_bundle, max_connections=20) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        yield process, (host, int(port))


@pytest.fixture
def connection(server):
    """A connection of its own."""
    with socket.create_connection(server[1], timeout=30) as opened:
        yield opened


def answer(connection):
    """Return status and content of one answer in JSON."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65_536)
    return int(head.split()[1]), json.loads(body)


def chunked(body):
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)


def resident_mb(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def test_trailers_are_bounded_and_are_no_headers(server, connection, png):
    process, address = server
    before = resident_mb(process)
    connection.sendall(HEAD + chunked(png()) + b"0\r\n")
    piece = b"".join(b"X-T%d: %s\r\n" % (number, b"a" * 1000) for number in range(100))
    with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012  one of them is the last
        for _ in range(1000):  # 100 MB
            connection.sendall(piece)
    assert resident_mb(process) - before < 16
    with socket.create_connection(address, timeout=30) as other:
        # Nor can one bring what a header says: here how the body is to be read.
        other.sendall(HEAD + chunked(png("lime")) + b"0\r\nContent-Type: application/json\r\n\r\n")
        status, content = answer(other)
    assert (status, content["predictions"][0][0]["label"]) == (200, "green")


@pytest.mark.parametrize("split", [False, True], ids=["one piece", "body later"])
def test_an_offer_to_upgrade_costs_nothing_of_the_request(connection, png, split):
    body = png("blue")
    head = HEAD + (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    if split:
        connection.sendall(head)
        time.sleep(0.2)
        connection.sendall(body)
    else:
        connection.sendall(head + body)
    status, content = answer(connection)
    assert (status, content["predictions"][0][0]["label"]) == (200, "blue")
    # And the connection goes on in HTTP/1.1.
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer(connection) == (200, {"live": True})


def test_a_client_that_closes_its_side_is_answered_and_then_closed(connection, png):
    body = png("lime")
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    connection.shutdown(socket.SHUT_WR)
    status, content = answer(connection)
    assert (status, content["predictions"][0][0]["label"]) == (200, "green")
    assert connection.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /health/li", HEAD + b"Content-Length: 10\r\n\r\nabc"])
def test_a_client_that_closes_its_side_too_early_is_not_waited_for(connection, sent):
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65_536):
        pass


@pytest.mark.parametrize("megabytes", [60, 300])
def test_a_client_that_sends_too_much_can_read_why(server, connection, megabytes):
    """A connection that is closed while its client sends is reset, and the answer in it is lost."""
    process, _ = server
    before = resident_mb(process)
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (megabytes * 2**20))
    for _ in range(megabytes):
        connection.sendall(bytes(2**20))
    status, said = answer(connection)
    assert (status, "Expected a body of at most" in said["error"]) == (413, True)
    assert connection.recv(1) == b""
    assert resident_mb(process) - before < 16


@pytest.mark.parametrize(
    "nonsense",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 30 + b"\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        HEAD + b"Content-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 1_000_000),
        b"\x16\x03\x01 no HTTP\r\n\r\n",
    ],
    ids=["chunk size", "huge chunk size", "two lengths", "negative length", "a header", "a port", "a query", "TLS"],
)
def test_what_is_no_http_is_400(connection, nonsense):
    connection.sendall(nonsense)
    assert connection.recv(65_536).startswith(b"HTTP/1.1 400")


def test_a_bad_chunk_behind_good_ones_is_400(connection):
    connection.sendall(HEAD + chunked(b"abc"))
    time.sleep(0.2)
    connection.sendall(b"ZZ\r\n")
    assert connection.recv(65_536).startswith(b"HTTP/1.1 400")


def test_connections_are_bounded_and_one_too_many_is_told(server, get, wait_until):
    _, address = server
    url = f"http://{address[0]}:{address[1]}"
    opened = [socket.create_connection(address, timeout=30) for _ in range(20)]
    try:
        with socket.create_connection(address, timeout=30) as extra:
            extra.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            status, content = answer(extra)
            assert (status, "connections" in content["error"]) == (503, True)
            assert extra.recv(1) == b""
        # One that says nothing is told too, and not kept.
        with socket.create_connection(address, timeout=30) as silent:
            assert answer(silent)[0] == 503
            assert silent.recv(1) == b""
    finally:
        for each in opened:
            each.close()
    wait_until(lambda: get(f"{url}/health/live").status_code == 200)
    assert "cpt_serve_connections_refused_total 2.0" in get(f"{url}/metrics").text


def test_heads_that_are_never_finished_hold_little_memory(tmp_path, shared_bundle, running_server):
    with running_server(tmp_path, shared_bundle, max_connections=400) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        before, opened = resident_mb(process), []
        try:
            for _ in range(800):
                opened.append(socket.create_connection((host, int(port)), timeout=30))
                try:
                    opened[-1].sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 15_000)
                except ConnectionError:
                    continue  # refused
            assert resident_mb(process) - before < 64
        finally:
            for each in opened:
                each.close()


FEW_FILES = """
import resource
from cpt_serving import load_settings, run
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, {hard}))
    run(load_settings(), on_listening=lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize(("hard", "connections"), [(500, 150), (100, 36)], ids=["it may open more", "it may not"])
def test_connections_leave_files_for_the_rest(tmp_path, shared_bundle, running_server, hard, connections):
    program = tmp_path / "serve.py"
    program.write_text(FEW_FILES.format(hard=hard))
    with running_server(tmp_path, shared_bundle, program, max_connections=150) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        opened = []
        try:
            for _ in range(connections):
                opened.append(socket.create_connection((host, int(port)), timeout=30))
                opened[-1].sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer(opened[-1]) == (200, {"live": True})
            with socket.create_connection((host, int(port)), timeout=30) as further:
                assert answer(further)[0] == 503
        finally:
            for each in opened:
                each.close()
        process.terminate()
        stderr = process.communicate(timeout=30)[1]
    assert ("36 connections at a time instead of 150" in stderr) == (hard == 100)


def test_requests_that_come_at_once_are_answered_one_after_the_other(connection):
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    received = b""
    while received.count(b'{"live":true}') < 20:
        received += connection.recv(65_536)
    assert received.count(b"HTTP/1.1 200") == 20


def test_while_heads_drip_others_are_served(server, get):
    _, address = server
    stop = threading.Event()

    def drip():
        with socket.create_connection(address, timeout=30) as slow:
            for byte in b"GET / HTTP/1.1\r\n":
                slow.sendall(bytes([byte]))
                if stop.wait(0.02):
                    return

    threads = [threading.Thread(target=drip) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        assert get(f"http://{address[0]}:{address[1]}/health/live").status_code == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def secure_server(tmp_path_factory, shared_bundle, running_server, tls):
    """Address of a server with TLS and few places for connections, and a client's context."""
    authority, certificate, key = tls
    settings = {"tls_cert": certificate, "tls_key": key, "max_connections": 5, "head_timeout_s": 2}
    with running_server(tmp_path_factory.mktemp("secure"), shared_bundle, **settings) as (_, url):
        host, port = url.removeprefix("https://").split(":")
        yield (host, int(port)), ssl.create_default_context(cafile=authority)


def is_live(address, context):
    """Return whether a server answers over TLS; the request arrives together with the end of the handshake."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, sent, server_hostname=address[0])
    with socket.create_connection(address, timeout=30) as raw:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(sent.read())
                if not received.write(raw.recv(65_536)):
                    return False
        client.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        raw.sendall(sent.read())
        content = b""
        while part := raw.recv(65_536):
            received.write(part)
            with contextlib.suppress(ssl.SSLWantReadError):
                content += client.read()
                break
    return content.startswith(b"HTTP/1.1 200")


def test_silent_connections_count_before_their_handshake_and_are_closed(secure_server, wait_until):
    address, context = secure_server
    wait_until(lambda: is_live(address, context))
    silent = [socket.create_connection(address, timeout=30) for _ in range(20)]
    try:
        for each in silent:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
    finally:
        for each in silent:
            each.close()

    def answers_again() -> bool:
        try:
            return is_live(address, context)
        except ConnectionResetError:  # the server has not seen yet that the others are closed
            return False

    wait_until(answers_again)


@pytest.mark.parametrize(("grpc_port", "possible"), [(None, 136), (8001, 68)], ids=["one port", "two ports"])
def test_all_ports_share_the_files_of_the_process(monkeypatch, shared_bundle, grpc_port, possible):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, limits: raised.append(limits))
    settings = load_settings(bundle=shared_bundle.path, grpc_port=grpc_port, max_connections=1000)
    assert possible_connections(settings) == (possible, 200)
    assert raised == [(200, 200)]
