import signal
import socket
import time
from dataclasses import replace

import pytest

from cpt_deploy.bundle import write_bundle
from cpt_deploy.errors import BundleError, UsageError, ValidationFailedError
from cpt_serving import PredictClient, load_settings, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_real_server_predicts_and_ends_in_order(
    tmp_path, shared_bundle, png, number, running_server, wait_until, get
):
    # Long enough to be asked in between on a busy machine.
    with running_server(tmp_path, shared_bundle, drain_s=5 if number == signal.SIGTERM else 0) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with PredictClient(url) as client:
            answer = client.predict([png("lime"), png("red")], top_k=2)
        assert [image[0].label for image in answer.predictions] == ["green", "red"]
        process.send_signal(number)
        if number == signal.SIGTERM:
            wait_until(lambda: get(f"{url}/health/ready").status_code == 503)
            assert get(f"{url}/health/live").status_code == 200
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, "ended\n")
    assert "Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_at_the_first_moment_ends_it_in_order_too(tmp_path, shared_bundle, running_server, number):
    with running_server(tmp_path, shared_bundle, drain_s=0) as (process, _):
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "ended\n")
    assert "Traceback" not in stderr


def test_a_request_under_way_is_answered_before_the_end(tmp_path, shared_bundle, png, running_server, wait_until, get):
    with running_server(tmp_path, shared_bundle, drain_s=0) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        host, port = url.removeprefix("http://").split(":")
        body = png()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body[:10])
            # The request is the server's once it has counted it.
            wait_until(lambda: "cpt_serve_requests_in_flight 2.0" in get(f"{url}/metrics").text)
            process.terminate()
            time.sleep(0.3)
            connection.sendall(body[10:])
            connection.settimeout(20)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0


def test_clients_that_vanish_or_send_nonsense_leave_the_server_up(
    tmp_path, shared_bundle, png, running_server, wait_until, get
):
    with running_server(tmp_path, shared_bundle) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        host, port = url.removeprefix("http://").split(":")
        for payload in (
            b"",
            b"\x00\xff\x16\x03nonsense\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(payload)
        assert process.poll() is None
        with PredictClient(url) as client:
            assert client.predict([png()]).predictions[0][0].label == "red"


def test_a_port_in_use_is_one_error_before_anything_starts(shared_bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}.*in use") as caught:
            run(load_settings(bundle=shared_bundle.path, port=port))
        assert "another port" in str(caught.value.hint)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_of_another_machine_is_a_usage_error(shared_bundle, host):
    with pytest.raises(UsageError, match=host):
        run(load_settings(bundle=shared_bundle.path, host=host, port=0))


def test_what_is_wrong_with_the_bundle_is_said_before_the_port_is_taken(tmp_path, bundle_contents):
    heard = []
    with pytest.raises(BundleError, match="there is nothing"):
        run(load_settings(bundle=tmp_path / "missing", port=0), on_listening=heard.append)
    contents = bundle_contents()
    outputs = {name: -values for name, values in contents.golden.outputs.items()}
    wrong = write_bundle(
        tmp_path / "wrong", contents=replace(contents, golden=replace(contents.golden, outputs=outputs))
    )
    with pytest.raises(ValidationFailedError, match="golden sample"):
        run(load_settings(bundle=wrong.path, port=0, golden="labels"), on_listening=heard.append)
    assert heard == []
