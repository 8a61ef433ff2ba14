import json
import re
import threading
from types import SimpleNamespace

import httpx2
import pytest

from cpt_deploy.errors import DataError
from cpt_serving import create_app, load_settings
from cpt_serving.access.api_keys import add_key
from cpt_serving.telemetry import access_log
from cpt_serving.telemetry.access_log import AccessLog, json_line, text_line
from cpt_serving.web.records import RequestRecord

SCOPE = {"method": "GET", "client": ("10.0.0.7", 4711)}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "access.log"


@pytest.fixture
def logged(shared_bundle, connect_to, file):
    """Asks a server something and returns the lines that it has logged by its end."""

    def ask(*requests, **settings):
        with connect_to(shared_bundle, access_log=True, access_log_file=file, **settings) as client:
            answers = [client.request(method, path, **more) for method, path, more in requests]
        return answers, file.read_text().splitlines()

    return ask


def test_a_line_of_json_says_who_asked_what_and_how_long_it_took(logged, png):
    files = [("file", png("lime")), ("file", png("red"))]
    headers = {"X-Request-Id": "mine-1", "traceparent": TRACEPARENT}
    answers, lines = logged(("POST", "/predict?top_k=1", {"files": files, "headers": headers}))
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("time"))
    assert entry.pop("span_id") == answers[0].headers["traceparent"].split("-")[2]
    times = {name: entry.pop(name) for name in ("duration_ms", "queue_ms", "inference_ms")}
    assert times["duration_ms"] >= times["queue_ms"] + times["inference_ms"] > 0
    assert entry == {
        "request_id": "mine-1",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "client": "testclient",
        "model": "colours",
        "version": "1",
        "rows": 2,
        "batch_rows": 2,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }


def test_requests_that_fail_are_logged_with_what_is_known(logged):
    _, lines = logged(
        ("POST", "/predict", {"content": b"no image"}),
        ("GET", "/v2/models/nobody", {}),
        ("GET", "/made/up", {}),
    )
    entries = [json.loads(line) for line in lines]
    assert [(entry["route"], entry["status"]) for entry in entries] == [
        ("/predict", 400),
        ("/v2/models/{model}", 404),
        ("unknown", 404),
    ]
    assert entries[0]["model"] == "colours"
    assert "rows" not in entries[1]


def test_health_and_metrics_are_left_out_unless_asked_for(logged):
    asked = [("GET", path, {}) for path in ("/health/live", "/v2/health/ready", "/metrics", "/v2")]
    _, lines = logged(*asked)
    assert [json.loads(line)["route"] for line in lines] == ["/v2"]
    _, lines = logged(*asked, access_log_health=True)
    routes = [json.loads(line)["route"] for line in lines[1:]]
    assert set(routes) == {"/health/ready", "/health/live", "/v2/health/ready", "/metrics", "/v2"}


def test_text_is_for_people(logged, png):
    answers, lines = logged(("POST", "/predict", {"content": png()}), ("GET", "/v2", {}), log_format="text")
    first, second = lines
    assert re.fullmatch(
        r"\S+Z testclient POST /predict 200 \d+\.\dms colours/1 rows=1 id=" + answers[0].headers["x-request-id"], first
    )
    assert re.fullmatch(r"\S+Z testclient GET /v2 200 \d+\.\dms id=\w+", second)


def test_the_name_of_the_key_is_logged_and_never_the_key(logged, tmp_path):
    key = add_key(tmp_path / "keys.txt", "shop", ["infer"])
    asked = [("GET", "/v2", {"headers": {"X-API-Key": sent}}) for sent in (key, "cpt_wrong")]
    _, lines = logged(*asked, api_keys=tmp_path / "keys.txt")
    assert [json.loads(line).get("key") for line in lines] == ["shop", None]
    assert not any(key in line or "cpt_wrong" in line for line in lines)


@pytest.mark.parametrize("sent", ['"quoted"', "{}", "\\", "a" * 128])
def test_an_id_of_the_client_cannot_break_a_line(logged, sent):
    _, lines = logged(("GET", "/v2", {"headers": {"X-Request-Id": sent}}))
    assert [json.loads(line)["request_id"] for line in lines] == [sent]


@pytest.mark.parametrize("sent", ["two words", "a" * 129, "", "tab\tstop", "\xe9"])
def test_an_id_that_could_is_replaced(logged, sent):
    answers, lines = logged(("GET", "/v2", {"headers": {"X-Request-Id": sent.encode("latin-1")}}))
    given = answers[0].headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", given)
    assert json.loads(lines[0])["request_id"] == given


def test_traceparent_comes_back_with_our_span_and_only_if_it_is_valid(client):
    echoed = client.get("/v2", headers={"traceparent": TRACEPARENT}).headers["traceparent"]
    assert re.fullmatch(r"00-4bf92f3577b34da6a3ce929d0e0e4736-[0-9a-f]{16}-01", echoed)
    assert echoed != TRACEPARENT
    assert "traceparent" not in client.get("/v2").headers
    assert "traceparent" not in client.get("/v2", headers={"traceparent": TRACEPARENT[:-3]}).headers


def test_writing_does_not_hold_up_requests_and_bounds_what_waits(monkeypatch, caplog):
    monkeypatch.setattr(access_log, "_MOST_WAITING", 10)
    written, writing, go_on = [], threading.Event(), threading.Event()

    def write(lines):
        writing.set()
        assert go_on.wait(60)
        written.append(lines)

    log = AccessLog(write, json_line)
    log.add(SCOPE, RequestRecord("first"), "/v2", 200, 0.1)
    assert writing.wait(60)
    for number in range(30):
        log.add(SCOPE, RequestRecord(str(number)), "/v2", 200, 0.1)
    go_on.set()
    with caplog.at_level("ERROR", "cpt_serving"):
        log.close()
    ids = [json.loads(line)["request_id"] for line in b"".join(written).splitlines()]
    assert ids == ["first", *map(str, range(10))]
    assert "left out 20 requests" in caplog.text


def test_what_waits_is_written_at_the_end_in_whole_lines(monkeypatch):
    written = []
    log = AccessLog(written.append, json_line)
    for number in range(200):
        log.add(SCOPE, RequestRecord(f"{number:060}"), "/v2", 200, 0.1)
    log.close()
    assert all(lines.endswith(b"\n") and len(lines) <= 4096 for lines in written)
    assert [int(json.loads(line)["request_id"]) for line in b"".join(written).splitlines()] == list(range(200))


def test_a_log_that_cannot_be_written_costs_no_request(caplog):
    def broken(lines):
        raise BrokenPipeError(32, "Broken pipe")

    log = AccessLog(broken, text_line)
    log.add({"method": "GET", "client": None}, RequestRecord("a"), "/v2", 200, 0.1)
    with caplog.at_level("ERROR", "cpt_serving"):
        log.close()
    assert "cannot be written: Broken pipe" in caplog.text


def test_lines_of_a_slow_pipe_are_written_whole(monkeypatch):
    taken = []
    few = SimpleNamespace(write=lambda target, data: taken.append(data[:3]) or len(data[:3]))
    monkeypatch.setattr(access_log, "os", few)
    access_log._write_all(1, b"0123456789")
    assert b"".join(taken) == b"0123456789"


def test_a_file_that_cannot_be_opened_is_named(shared_bundle, tmp_path):
    with pytest.raises(DataError, match=r"missing/access\.log, but got: No such file"):
        create_app(load_settings(bundle=shared_bundle.path, access_log_file=tmp_path / "missing" / "access.log"))


def test_a_real_server_logs_to_stdout_and_speaks_json_on_stderr(
    tmp_path, shared_bundle, running_server, wait_until, get
):
    settings = {"access_log": True, "trusted_proxies": "127.0.0.1", "drain_s": 0}
    with running_server(tmp_path, shared_bundle, **settings) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        for number in range(10):
            headers = {"X-Request-Id": str(number), "X-Forwarded-For": "203.0.113.9"}
            httpx2.get(f"{url}/v2", headers=headers, trust_env=False)
        process.terminate()
        stdout, stderr = process.communicate(timeout=30)
    *lines, last = stdout.splitlines()
    assert last == "ended"
    entries = [json.loads(line) for line in lines]
    assert [int(entry["request_id"]) for entry in entries] == list(range(10))
    assert {entry["client"] for entry in entries} == {"203.0.113.9"}
    assert {json.loads(line)["level"] for line in stderr.splitlines()} == {"info"}
