"""Certificates that change while the server runs."""

import socket
import ssl
import threading

import pytest
import trustme

from cpt_deploy.errors import DataError
from cpt_serving.certificates import Certificate


@pytest.fixture
def issue(tmp_path):
    """Writes a new certificate and key; returns the certificate in DER."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")

    def write():
        made = authority.issue_cert("127.0.0.1")
        for part, name in ((made.private_key_pem, "key.pem"), (made.cert_chain_pems[0], "cert.pem")):
            part.write_to_path(tmp_path / f".{name}")
            (tmp_path / f".{name}").replace(tmp_path / name)
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    return write


def shown(context, host, port):
    """Return the certificate that a server shows, in DER."""
    with context.wrap_socket(socket.create_connection((host, port), timeout=30), server_hostname=host) as connection:
        return connection.getpeercert(binary_form=True)


def test_files_that_do_not_fit_leave_the_last_good_pair(tmp_path, issue, caplog):
    first = issue()
    certificate = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    good = (tmp_path / "cert.pem").read_bytes()
    (tmp_path / "cert.pem").write_text("half of a")
    certificate.reload()
    certificate.reload()
    assert certificate.version == 1
    assert caplog.text.count("the last certificate stays") == 1
    (tmp_path / "cert.pem").unlink()
    certificate.reload()
    assert certificate.pem()[1] == good
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadWithAnswer(listener, certificate) as serving:
        assert shown(ssl.create_default_context(cafile=tmp_path / "authority.pem"), *serving.address) == first
    second = issue()
    certificate.reload()
    assert (certificate.version, second == first) == (2, False)
    with pytest.raises(DataError, match="No such file"):
        Certificate(tmp_path / "missing.pem", None)


class ThreadWithAnswer:
    """Shakes hands once, with a context."""

    def __init__(self, listener, certificate):
        self.address = listener.getsockname()
        self._thread = threading.Thread(target=self._shake, args=(listener, certificate))

    def _shake(self, listener, certificate):
        accepted, _ = listener.accept()
        with certificate.context.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(1)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()


def test_a_server_shows_its_new_certificate_over_http_and_grpc(
    tmp_path, issue, shared_bundle, running_server, wait_until
):
    pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    first = issue()
    settings = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem", "grpc_port": port}
    with running_server(tmp_path, shared_bundle, drain_s=0, **settings) as (process, url):
        context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        context.set_alpn_protocols(["h2"])
        addresses = ("127.0.0.1", int(url.rsplit(":", 1)[1])), ("127.0.0.1", port)
        wait_until(lambda: [shown(context, *address) for address in addresses] == [first, first])
        second = issue()
        wait_until(lambda: [shown(context, *address) for address in addresses] == [second, second])
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in stderr
