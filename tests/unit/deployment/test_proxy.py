"""nginx and systemd as `deploy/` sets them up: what they name exists, and the proxy keeps off what it should."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import trustme

from cpt_serving import load_settings
from cpt_serving.settings import ServeSettings

DEPLOY = Path(__file__).parents[3] / "deploy"
CONFIG = DEPLOY / "nginx" / "cpt-serve.conf"
UNIT = DEPLOY / "systemd" / "cpt-serve@.service"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


def test_the_unit_names_settings_that_there_are_and_waits_for_the_end():
    text = UNIT.read_text()
    names = set(re.findall(r"CPT_SERVE_(\w+)=", text))
    assert {name.lower() for name in names} <= set(ServeSettings.model_fields)
    defaults = load_settings(bundle="b")
    waits = int(re.search(r"TimeoutStopSec=(\d+)", text)[1])
    assert waits >= defaults.drain_s + defaults.shutdown_s + 5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/cpt-serve/bin/cpt", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit.with_name("cpt-serve@8001.service")],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not [line for line in done.stderr.splitlines() if "cpt-serve" in line], done.stderr


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture(scope="module")
def server(folder, shared_bundle):
    """The port of a server with the parser that needs a proxy."""
    port = free_port()
    settings = {"BUNDLE": shared_bundle.path, "PORT": port, "ACCESS_LOG": False}
    program = "from cpt_serving import load_settings, run; run(load_settings())"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **{f"CPT_SERVE_{name}": str(value) for name, value in settings.items()}},
    )
    yield port
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def proxy(folder, server):
    """Port and context of the proxy, with the files and ports of the test in its configuration."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    port, text = free_port(), CONFIG.read_text()
    for before, after in (
        ("/etc/tls/", f"{folder}/"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:8001", f"127.0.0.1:{server}"),
        ("127.0.0.1:8002", f"127.0.0.1:{free_port()}"),  # one that is not there
        ("client_header_timeout 10s", "client_header_timeout 1s"),
    ):
        assert before in text
        text = text.replace(before, after)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {text} }}"
    )
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    context = ssl.create_default_context(cafile=folder / "authority.pem")
    for _ in range(500):
        try:
            with httpx2.Client(verify=context, trust_env=False) as client:
                if client.get(f"https://127.0.0.1:{port}/health/ready").status_code == 200:
                    break
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    yield port, context
    process.terminate()
    process.wait(60)


def exchange(proxy, *pieces):
    """Send bytes and return all that comes back; the proxy closes."""
    port, context = proxy
    received = b""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 60), server_hostname="127.0.0.1") as sent:
        for piece in pieces:
            sent.sendall(piece)
        while part := sent.recv(65_536):
            received += part
    return received


@pytest.mark.slow
def test_what_the_fast_parser_cannot_take_does_not_reach_it(proxy, png):
    body, close = png("lime"), b"Connection: close\r\n"
    head = HEAD + close + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(body), body)
    answer = exchange(proxy, head, b"Content-Type: application/json\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"green"' in answer
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    )
    answer = exchange(proxy, HEAD + upgrade + b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"green"' in answer
    assert exchange(proxy, HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert exchange(proxy, b"GET /health/live HT") in (b"", b"HTTP/1.1 408")


@pytest.mark.slow
def test_the_proxy_shows_nobody_what_is_for_operators(proxy):
    port, context = proxy
    with httpx2.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False) as client:
        for path in ("/metrics", "/v2/repository/index", "/v2/repository/models/colours/unload"):
            assert client.get(path).status_code == client.post(path).status_code == 403
        assert "max-age" in client.get("/health/live").headers["Strict-Transport-Security"]
