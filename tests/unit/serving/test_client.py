import socket

import httpx2
import pytest

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError
from cpt_serving import PredictClient

GOOD = {
    "model": "digits",
    "version": "1",
    "predictions": [[{"label": "seven", "index": 7, "probability": 0.9}]],
    "timings": {"total_ms": 1.0},
}


def client_of(status, content, seen=None):
    def answer(request):
        if seen is not None:
            seen.append(request)
        return (
            httpx2.Response(status, json=content)
            if not isinstance(content, bytes)
            else httpx2.Response(status, content=content)
        )

    return PredictClient("http://server:8000", transport=httpx2.MockTransport(answer))


def test_files_are_sent_as_a_form(tmp_path):
    (tmp_path / "a.png").write_bytes(b"first")
    seen = []
    with client_of(200, GOOD, seen) as client:
        answer = client.predict([tmp_path / "a.png", b"second"], top_k=3)
    assert answer.predictions == [[Prediction("seven", 7, 0.9)]]
    assert (answer.model, answer.version) == ("digits", "1")
    (request,) = seen
    assert str(request.url) == "http://server:8000/predict?top_k=3"
    assert b'filename="a.png"' in request.content
    assert b"second" in request.content


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("localhost:8000", "http://localhost:8000/predict"),
        ("http://h:1/", "http://h:1/predict"),
        ("https://h/predict", "https://h/predict"),
        ("http://h/models/a", "http://h/models/a/predict"),
        ("http://[::1]:9", "http://[::1]:9/predict"),
    ],
)
def test_addresses_may_be_written_in_several_ways(url, asked):
    seen = []

    def answer(request):
        seen.append(str(request.url.copy_with(query=None)))
        return httpx2.Response(200, json=GOOD)

    with PredictClient(url, transport=httpx2.MockTransport(answer)) as client:
        client.predict([b"image"])
    assert seen == [asked]


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port", "http://h\x00"])
def test_what_is_no_address_is_a_usage_error(url):
    with pytest.raises(UsageError, match="Expected"):
        PredictClient(url)


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [(400, ImageError, 5), (413, ImageTooLargeError, 5), (415, ImageError, 5), (503, CptError, 1), (500, CptError, 1)],
)
def test_refusals_carry_the_servers_words(status, kind, exit_code):
    with client_of(status, {"error": "no good", "request_id": "1"}) as client, pytest.raises(CptError) as caught:
        client.predict([b"image"])
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code
    assert f"{status}: no good" in caught.value.message


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize(
    "content", [b"<html>", [], {"detail": "x"}, {**GOOD, "predictions": [[{"label": 1}]]}], ids=str
)
def test_another_kind_of_server_is_an_error(status, content):
    with client_of(status, content) as client, pytest.raises(CptError, match="Expected a prediction"):
        client.predict([b"image"])


def test_no_server_is_a_data_error_with_a_hint(monkeypatch):
    # A proxy that is not there must not be asked for this machine's own address.
    monkeypatch.setenv("HTTP_PROXY", "http://203.0.113.1:1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with PredictClient(f"http://127.0.0.1:{port}", timeout_s=5) as client, pytest.raises(DataError) as caught:
        client.predict([b"image"])
    assert caught.value.exit_code == 5
    assert "cpt serve" in str(caught.value.hint)


def test_a_server_that_says_nothing_is_a_data_error():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with PredictClient(url, timeout_s=0.2) as client, pytest.raises(DataError, match="did not come in time"):
            client.predict([b"image"])


def test_a_missing_file_is_named(tmp_path):
    with client_of(200, GOOD) as client, pytest.raises(DataError, match=r"missing\.png"):
        client.predict([tmp_path / "missing.png"])
