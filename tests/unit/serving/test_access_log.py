import contextlib
import errno
import json
import logging
import os
import re
import shutil
import time
from dataclasses import replace

import httpx2
import pytest

from cpt_deploy.errors import DataError
from cpt_serving import create_app, load_settings
from cpt_serving.access.api_keys import add_key
from cpt_serving.telemetry.access_log import AccessLog, json_line, text_line
from cpt_serving.telemetry.line_queue import LineQueue
from cpt_serving.telemetry.records import RequestRecord
from cpt_serving.telemetry.server_log import JsonFormatter, QueuedHandler
from tests.unit.serving.conftest import server_process

SCOPE = {"method": "GET", "client": ("10.0.0.7", 4711)}


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
    headers = {"X-Request-Id": "mine-1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    _, lines = logged(("POST", "/predict?top_k=1", {"files": files, "headers": headers}))
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("time"))
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


def test_health_and_metrics_are_left_out(logged):
    asked = [("GET", path, {}) for path in ("/health/live", "/v2/health/ready", "/metrics", "/v2")]
    _, lines = logged(*asked)
    assert [json.loads(line)["route"] for line in lines] == ["/v2"]


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


@pytest.fixture
def pipe():
    """A pipe that nobody reads, full but for a few bytes: both ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    yield read, write
    for end in (read, write):
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_pipe_that_nobody_reads_holds_up_neither_requests_nor_the_end(pipe):
    dropped = []
    log = QueuedHandler(os.dup(pipe[1]), logging.Formatter("%(message)s"), most=10)
    log.dropped = lambda: dropped.append(1)
    for number in range(100):
        log.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    # The thread holds one, and has taken another at most.
    assert 88 <= len(dropped) <= 90
    log.close()
    assert len(dropped) == 100


@pytest.mark.parametrize("formatter", [logging.Formatter("%(message)s"), JsonFormatter()])
def test_names_that_are_no_text_end_no_log(formatter):
    read, write = os.pipe()
    log = QueuedHandler(write, formatter)
    log.dropped = lambda: pytest.fail("a line was lost")
    for name in ("model-\udcff", "\ud800", "fine"):
        log.handle(logging.makeLogRecord({"msg": f"loading {name}"}))
    log.close()
    os.set_blocking(read, False)
    lines = os.read(read, 1 << 16).decode().splitlines()
    os.close(read)
    assert [
        part in line for part, line in zip((r"model-\udcff", r"\ud800", "fine"), map(_plain, lines), strict=True)
    ] == [True] * 3


def _plain(line):
    return json.loads(line)["message"] if line.startswith("{") else line


def test_a_line_that_cannot_be_made_is_dropped_and_the_next_written():
    read, write = os.pipe()
    dropped = []
    lines = LineQueue(write, lambda entry: b"%d\n" % (1 // entry), gather_s=0.01, dropped=lambda: dropped.append(1))
    for entry in (1, 0, 1, 0):
        lines.put(entry)
    found = b""
    while found.count(b"\n") < 2:  # before the end: a dropped line holds up none that came before it
        found += os.read(read, 100)
    lines.close()
    assert (found, dropped) == (b"1\n1\n", [1, 1])
    os.close(read)


def test_a_pipe_that_does_not_block_loses_no_line_while_somebody_reads():
    read, write = os.pipe()
    os.set_blocking(write, False)
    lines = LineQueue(write, lambda entry: b"%0100d\n" % entry, dropped=lambda: pytest.fail("a line was lost"))
    for entry in range(3000):  # more than a pipe holds
        lines.put(entry)
    with os.fdopen(read, "rb") as file:
        found = [int(file.readline()) for _ in range(3000)]
    lines.close()
    assert found == list(range(3000))


def test_a_line_after_one_that_was_cut_off_begins_anew(tmp_path, monkeypatch):
    dropped, written, full = [], os.write, True
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)

    def write(descriptor, data):
        if full and os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data[:5] if full else data)

    monkeypatch.setattr("cpt_serving.telemetry.line_queue.os.write", write)
    lines = LineQueue(file, lambda entry: b"line %d\n" % entry, dropped=lambda: dropped.append(1))
    lines.put(1)
    while not dropped:
        time.sleep(0.01)
    full = False
    lines.put(2)
    lines.close()
    assert (tmp_path / "log").read_bytes() == b"line \nline 2\n"
    assert dropped == [1]


def test_every_line_of_the_log_is_json_from_the_loading_of_models_on(tmp_path, shared_bundle):
    models = tmp_path / "models"
    shutil.copytree(shared_bundle.path, models / "good")
    (models / "bad.onnx").write_bytes(b"no model")
    with server_process(tmp_path, replace(shared_bundle, path=models), log_format="json") as (process, _):
        process.terminate()
        _, log = process.communicate(timeout=30)
    lines = [json.loads(line) for line in log.splitlines()]
    assert any("bad.onnx" in line["message"] for line in lines)
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_lines_come_whole_and_in_order_through_a_pipe_that_is_read_late(pipe):
    log = AccessLog(os.dup(pipe[1]), json_line)
    for number in range(2000):
        log.add(SCOPE, RequestRecord(f"{number:060}"), "/v2", 200, 0.1)
    os.set_blocking(pipe[0], False)
    found = b""
    while found.count(b"\n") < 2000:
        with contextlib.suppress(BlockingIOError):
            found += os.read(pipe[0], 1 << 20)
    log.close()
    lines = found.lstrip(b"x").splitlines()
    assert [int(json.loads(line)["request_id"]) for line in lines] == list(range(2000))


def test_a_log_whose_reader_is_gone_costs_no_request_and_counts_what_it_lost(pipe):
    os.close(pipe[0])
    dropped = []
    log = AccessLog(os.dup(pipe[1]), text_line, dropped=lambda: dropped.append(1))
    for _ in range(3):
        log.add({"method": "GET", "client": None}, RequestRecord("a"), "/v2", 200, 0.1)
    log.close()
    assert len(dropped) == 3


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
