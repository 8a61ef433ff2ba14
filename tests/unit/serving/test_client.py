"""The client, blocking and for asyncio: against answers that a test makes up, and against real servers."""

import asyncio
import datetime
import email.utils
import json
import socket

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError
from cpt_serving import AsyncPredictClient, PredictClient
from cpt_serving.client import exchange
from cpt_serving.client.exchange import TIMEOUT_HEADER, retry_after_s

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
    [
        (404, UsageError, 2),
        (400, ImageError, 5),
        (413, ImageTooLargeError, 5),
        (415, ImageError, 5),
        (500, CptError, 1),
        (504, DataError, 5),
    ],
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


@pytest.mark.parametrize(
    "url", ["http://alice:s3cret@127.0.0.1:1/", "ftp://alice:s3cret@host/", "http://alice:s3cret@[::/"]
)
def test_passwords_of_addresses_are_not_shown(url):
    with pytest.raises(CptError) as caught, PredictClient(url, attempts=1) as client:
        client.predict([b"image"])
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"


def test_a_server_that_says_nothing_is_a_data_error():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with PredictClient(url, timeout_s=0.2) as client, pytest.raises(DataError, match="did not come in time"):
            client.predict([b"image"])


def test_a_missing_file_is_named(tmp_path):
    with client_of(200, GOOD) as client, pytest.raises(DataError, match=r"missing\.png"):
        client.predict([tmp_path / "missing.png"])


class Clock:
    """A clock that moves when somebody waits, and by as much as an attempt takes."""

    def __init__(self, attempt_s=0.0):
        self.now, self.pauses, self.attempt_s = 0.0, [], attempt_s

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def run(monkeypatch):
    """Asks a network that answers as is given; returns the answer or the error, the pauses and the deadlines told."""

    def ask(outcomes, *, attempt_s=0.0, **options):
        clock, told, pending = Clock(attempt_s), [], list(outcomes)
        monkeypatch.setattr(exchange, "monotonic", clock)
        monkeypatch.setattr(exchange, "sleep", clock.sleep)

        def answer(request):
            told.append(float(request.headers[TIMEOUT_HEADER]) / 1e3)
            clock.now += clock.attempt_s
            outcome = pending.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def predict():
            transport = httpx2.MockTransport(answer)
            async with AsyncPredictClient("server", transport=transport, **options) as client:
                return await client.predict([b"x"])

        try:
            return asyncio.run(predict()), clock.pauses, told
        except CptError as error:
            return error, clock.pauses, told

    return ask


def refused(status, **headers):
    return httpx2.Response(status, json={"error": "busy"}, headers={k.replace("_", "-"): v for k, v in headers.items()})


def good():
    return httpx2.Response(200, json=GOOD)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_as_long_as_it_says(run, status):
    answer, pauses, told = run([refused(status, Retry_After="2"), refused(status, Retry_After="1"), good()])
    assert answer.model == "digits"
    assert 2 <= pauses[0] <= 2.5
    assert 1 <= pauses[1] <= 1.25
    assert told[0] == 60
    assert told[1] == pytest.approx(60 - pauses[0], abs=1e-3)


def test_without_an_advice_the_pauses_double_and_are_spread(run):
    _, pauses, _ = run([refused(429)] * 4 + [good()])
    assert len(set(pauses)) == 4
    for pause, shortest in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert shortest <= pause <= 1.25 * shortest


def test_after_the_last_attempt_the_refusal_is_raised(run):
    error, pauses, told = run([refused(503)] * 9, attempts=3)
    assert "503: busy" in error.message
    assert (len(pauses), len(told)) == (2, 3)


def test_the_deadline_spans_all_attempts_and_no_pause_goes_beyond_it(run):
    error, pauses, told = run([refused(429, Retry_After="3")] * 9, timeout_s=10.0, attempt_s=0.5)
    assert "429" in error.message
    assert len(told) in {2, 3}
    assert sum(pauses) + 0.5 * len(told) <= 10
    assert told == sorted(told, reverse=True)
    assert run([refused(503, Retry_After="3600")])[1] == []


@pytest.mark.parametrize(
    "outcome",
    [
        *(refused(status) for status in (400, 404, 413, 500, 502, 504)),
        httpx2.ConnectError("x"),
        httpx2.ReadTimeout("x"),
    ],
    ids=str,
)
def test_what_is_no_sign_of_a_busy_server_is_final(run, outcome):
    error, pauses, told = run([outcome])
    assert isinstance(error, CptError)
    assert (pauses, len(told)) == ([], 1)


def test_a_connection_that_was_closed_meanwhile_is_opened_again(run):
    answer, pauses, _ = run([httpx2.RemoteProtocolError("Server disconnected without sending a response."), good()])
    assert answer.model == "digits"
    assert len(pauses) == 1


def test_retry_after_is_seconds_or_a_date():
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 90 <= retry_after_s(email.utils.format_datetime(later, usegmt=True)) <= 100
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("7") == 7
    for text in (None, "", "soon", "-1", "1e3"):
        assert retry_after_s(text) is None


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} (Jan|Dec) \d{1,5} \d\d:\d\d:\d\d ([+-]\d{4,9}|GMT|X)"))
def test_no_retry_after_breaks_the_client(text):
    assert retry_after_s(text) is None or retry_after_s(text) >= 0


def test_threads_and_tasks_share_a_client_of_a_real_server(tmp_path, shared_bundle, running_server, png):
    with running_server(tmp_path, shared_bundle) as (_, url), PredictClient(url) as client:

        async def ask():
            async with AsyncPredictClient(url) as asynchronous:
                by_tasks = [asynchronous.predict([png(colour)], top_k=3) for colour in ("lime", "red")]
                by_threads = [asyncio.to_thread(client.predict, [png(colour)], top_k=3) for colour in ("lime", "red")]
                return await asyncio.gather(*by_tasks, *by_threads)

        answers = asyncio.run(ask())
        assert [answer.predictions[0][0].label for answer in answers] == ["green", "red"] * 2
        assert answers[0].predictions == answers[2].predictions
        with pytest.raises(UsageError, match="404"):
            client.predict([png()], model="other")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'data: {"text": "a"}\n\n', "broke off"),
        (b"data: {text}\n\n", "events of JSON"),
        (b'data: {"error": "the deadline passed"}\n\n', "the deadline passed"),
    ],
)
def test_a_text_that_does_not_come_to_its_end_is_a_data_error(content, said):
    with client_of(200, content) as client, pytest.raises(DataError, match=said):
        list(client.generate("the"))


def test_texts_may_contain_the_line_ends_of_unicode():
    text = "a\u2028b\u0085c\u2029"
    content = json.dumps({"text": text, "finish_reason": "length"}, ensure_ascii=False).encode()
    with client_of(200, b"data: " + content + b"\n\n") as client:
        assert [event["text"] for event in client.generate("the")] == [text]


def test_a_server_that_does_not_take_the_text_says_why():
    with client_of(400, {"error": "too long"}) as client, pytest.raises(UsageError, match="400: too long"):
        list(client.generate("the"))
