"""TLS, addresses that others reach, heads without an end, and settings that are wrong before anything listens."""

import socket
import ssl
import sys

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization

from cpt_deploy.errors import DataError, MissingExtraError, UsageError
from cpt_serving import create_app, load_settings, run
from cpt_serving.access.api_keys import add_key
from cpt_serving.app import create_service
from cpt_serving.server import warn_if_exposed


def raw(address, *pieces, after=None):
    """Send bytes as they are and return the whole answer; if there is a request before them, once it is answered."""
    host, port = address
    answer = b""
    with socket.create_connection((host, port), timeout=30) as connection:
        if after is not None:
            connection.sendall(after)
            while not answer.endswith(b'{"live":true}'):
                answer += connection.recv(65_536)
            answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while part := connection.recv(65_536):
                answer += part
        except ConnectionError:
            pass
    return answer


def test_a_real_server_speaks_https_and_asks_for_a_key(tmp_path, shared_bundle, png, tls, running_server, wait_until):
    authority, certificate, private_key = tls
    key = add_key(tmp_path / "keys.txt", "shop", ["infer"])
    settings = {"tls_cert": certificate, "tls_key": private_key, "api_keys": tmp_path / "keys.txt", "drain_s": 0}
    with running_server(tmp_path, shared_bundle, **settings) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(authority))
        with httpx2.Client(base_url=url, verify=context, trust_env=False) as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            refusal = client.post("/predict", content=png())
            assert refusal.status_code == 401
            assert set(refusal.json()) == {"error", "request_id"}
            answer = client.post("/predict", content=png("lime"), headers={"Authorization": f"Bearer {key}"})
            assert answer.json()["predictions"][0][0]["label"] == "green"
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            httpx2.get(f"{url}/health/live", trust_env=False)
        plain = raw(("127.0.0.1", int(url.rsplit(":", 1)[1])), b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain
        process.terminate()
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in stderr
    assert key not in stderr


def test_a_head_is_refused_before_it_fills_the_memory(tmp_path, shared_bundle, png, running_server, wait_until, get):
    with running_server(tmp_path, shared_bundle, max_head_bytes=8192, drain_s=0) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        start = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        # Read whole before it is refused, so that the answer cannot be lost with a reset of the connection.
        assert raw(address, start + b"X: " + b"a" * 9000).startswith(b"HTTP/1.1 400")
        for pieces in (
            (start, b"X: ", b"a" * 100_000),
            (start, *[b"X: %d\r\n" % number for number in range(10_000)]),
            (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",),
        ):
            assert b"HTTP/1.1 2" not in raw(address, *pieces)
        # One request after another on a connection: the second one's head is bounded too.
        first = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b"HTTP/1.1 2" not in raw(address, start, b"X: ", b"a" * 100_000, b"\r\n\r\n", after=first)
        assert raw(address, start, b"X: " + b"a" * 7000 + b"\r\n\r", b"\n").startswith(b"HTTP/1.1 200")
        # A body is no head, however it arrives.
        image = png(size=(64, 64)) + b"\0" * 200_000
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r" % len(image)
        assert raw(address, head + b"\n" + image).startswith(b"HTTP/1.1 200")
        assert raw(address, head, b"\n" + image).startswith(b"HTTP/1.1 200")
        assert process.poll() is None


@pytest.mark.parametrize(
    ("address", "keys", "warned"),
    [
        ("0.0.0.0", False, True),
        ("192.0.2.7", False, True),
        ("::", False, True),
        ("fe80::1%eth0", False, True),
        ("0.0.0.0", True, False),
        ("127.0.0.1", False, False),
        ("::1", False, False),
    ],
)
def test_an_address_that_others_reach_without_a_key_is_warned_of(
    shared_bundle, tmp_path, caplog, address, keys, warned
):
    settings = load_settings(bundle=shared_bundle.path, api_keys=tmp_path / "keys.txt" if keys else None)
    warn_if_exposed(settings, address)
    assert (f"everyone who can reach {address} can send requests" in caplog.text) == warned


def test_by_default_only_this_machine_is_answered(shared_bundle):
    settings = load_settings(bundle=shared_bundle.path)
    assert settings.host == "127.0.0.1"
    assert (settings.cors_origins, settings.trusted_proxies) == ("", "")


def test_what_is_wrong_with_keys_and_certificates_is_said_before_the_port_is_taken(shared_bundle, tmp_path, tls):
    authority, certificate, private_key = tls
    (tmp_path / "nonsense.pem").write_text("nonsense")
    heard = []
    for settings, kind, expected in (
        ({"api_keys": tmp_path / "missing.txt"}, DataError, "API keys at .*No such file"),
        ({"tls_key": private_key}, UsageError, "a certificate for the key"),
        ({"tls_cert": tmp_path / "missing.pem"}, DataError, "No such file"),
        ({"tls_cert": certificate, "tls_key": tmp_path / "nonsense.pem"}, DataError, "no matching pair"),
        ({"tls_cert": authority, "tls_key": private_key}, DataError, "no matching pair"),
        ({"access_log_file": tmp_path / "missing" / "log"}, DataError, "No such file"),
    ):
        with pytest.raises(kind, match=expected):
            run(load_settings(bundle=shared_bundle.path, port=0, **settings), on_listening=heard.append)
    assert heard == []


def test_a_key_with_a_password_is_an_error_and_no_question(shared_bundle, tmp_path, tls):
    _, certificate, private_key = tls
    loaded = serialization.load_pem_private_key(private_key.read_bytes(), None)
    locked = loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    with pytest.raises(DataError, match="without a password"):
        create_service(load_settings(bundle=shared_bundle.path, tls_cert=certificate, tls_key=tmp_path / "locked.pem"))


def test_tracing_that_is_asked_for_and_missing_is_said_at_once(shared_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(MissingExtraError, match="not installed"):
        create_app(load_settings(bundle=shared_bundle.path, tracing="on"))
