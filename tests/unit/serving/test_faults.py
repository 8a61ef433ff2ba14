"""What happens to a real server when clients and files misbehave."""

import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from cpt_deploy.bundle import write_bundle


def labelled(contents, labels):
    """The contents with other labels."""
    return replace(contents, processor=replace(contents.processor, labels=labels))


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(30)
    return connection


def read_all(connection):
    """Return what the server sends until it closes the connection; a server that does not ends the test."""
    received = b""
    while part := connection.recv(4096):
        received += part
    return received


def test_connections_that_send_too_slowly_are_closed_and_others_served(
    tmp_path, shared_bundle, png, running_server, wait_until, get
):
    slow = {"head_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 60}
    with running_server(tmp_path, shared_bundle, **slow) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with connect(url) as silent, connect(url) as dribbling, connect(url) as again, connect(url) as bodiless:
            again.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            first = b""
            while not first.endswith(b'{"live":true}'):
                first += again.recv(4096)
            again.sendall(b"GET /health/live HTTP/1.1\r\nX-Sl")
            bodiless.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            stop = threading.Event()
            dribbler = threading.Thread(target=_dribble, args=(dribbling, stop))
            dribbler.start()
            assert read_all(silent) == b""
            for late in (dribbling, again):
                head, _, body = read_all(late).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 408")
                assert set(json.loads(body)) == {"error", "request_id"}
            answer = read_all(bodiless)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"but got 3 bytes" in answer
            stop.set()
            dribbler.join()
        assert httpx2.post(f"{url}/predict", content=png(), trust_env=False).status_code == 200


def _dribble(connection, stop):
    """Send a header a byte at a time, as slow-loris does."""
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        while not stop.wait(0.02):
            connection.sendall(b"a")
    except OSError:
        # The server has closed the connection.
        return


def test_no_request_fails_while_versions_come_change_and_go(
    tmp_path, shared_bundle, bundle_contents, png, running_server, wait_until, get
):
    models = tmp_path / "models"
    shutil.copytree(shared_bundle.path, models / "colours" / "1")
    bundle = replace(shared_bundle, path=models)
    with running_server(tmp_path, bundle, watch_s=0.1, concurrency=1) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        stop = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask_until, stop, url, png()) for _ in range(4)]
            try:
                for version in ("2", "10"):
                    publish(shared_bundle.path, models / "colours" / version)
                    wait_until(lambda version=version: ask(url, png())["version"] == version)
                shutil.rmtree(models / "colours" / "10")
                wait_until(lambda: ask(url, png())["version"] == "2")
                # The same version with another content, as an export into the same place writes it.
                contents = labelled(bundle_contents(), ("rot", "gruen", "blau"))
                write_bundle(tmp_path / "other", contents=contents)
                (models / "colours" / "2").rename(models / "colours" / ".old")
                (tmp_path / "other").rename(models / "colours" / "2")
                wait_until(lambda: ask(url, png())["predictions"][0][0]["label"] == "rot")
            finally:
                stop.set()
            answers = [answer for client in clients for answer in client.result()]
        assert {status for status, _ in answers} == {200}, {text for status, text in answers if status != 200}
        assert {text for _, text in answers} >= {"red", "rot"}
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr


def publish(source, place):
    """Copy a bundle under a hidden name, and rename it: it appears whole."""
    hidden = place.with_name(f".{place.name}")
    shutil.copytree(source, hidden)
    hidden.rename(place)


def ask_until(stop, url, image):
    """Ask all the time, on one connection, and return each status with the top label or the error."""
    answers = []
    with httpx2.Client(trust_env=False, timeout=30) as client:
        while not stop.is_set():
            response = client.post(f"{url}/predict", content=image, params={"top_k": 1})
            content = response.json()
            text = content["predictions"][0][0]["label"] if response.status_code == 200 else content["error"]
            answers.append((response.status_code, text))
            time.sleep(0.002)
    return answers


def ask(url, image):
    return httpx2.post(f"{url}/predict", content=image, trust_env=False, timeout=30).json()


def test_the_odd_images_each_get_a_prediction_or_a_clear_error(client, odd_images):
    files = sorted(file for file in odd_images.iterdir() if file.suffix != ".md")
    outcomes = {}
    for file in files:
        response = client.post("/predict", files={"file": (file.name, file.read_bytes())})
        content = response.json()
        outcomes[file.name] = response.status_code
        if response.status_code == 200:
            assert content["predictions"][0][0]["label"] in {"red", "green", "blue"}
        else:
            assert content["error"].startswith("Expected")
            assert "Traceback" not in content["error"]
            assert "\n" not in content["error"]
    refused = {name: status for name, status in outcomes.items() if status != 200}
    assert refused == {
        "broken.png": 400,
        "broken_data_stream.png": 400,
        "decompression_bomb.gif": 413,
        "decompression_bomb.ico": 400,
        "truncated_end_chunk.png": 400,
        "truncated_image.png": 400,
        "truncated_jpeg.jpg": 400,
        "zero_width.gif": 400,
    }


def test_a_client_that_leaves_is_not_computed_for(tmp_path, shared_bundle, png, running_server, wait_until, get):
    program = tmp_path / "slow.py"
    program.write_text(_SLOW_MODEL)
    with running_server(tmp_path, shared_bundle, concurrency=1, program=program) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        failures = 'cpt_serve_inference_failures_total{model="colours",reason="cancelled",version="1"} 1.0'
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(httpx2.post, f"{url}/predict", content=png(), trust_env=False, timeout=60)
            wait_until((tmp_path / "computing").exists)
            with connect(url) as leaving:
                body = png()
                leaving.sendall(
                    f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                wait_until(
                    lambda: 'cpt_serve_queued_rows{model="colours",version="1"} 1.0' in get(f"{url}/metrics").text
                )
            wait_until(lambda: failures in get(f"{url}/metrics").text)
            Path(tmp_path / "go").touch()
            assert first.result().status_code == 200
        text = get(f"{url}/metrics").text
        assert 'cpt_serve_rows_total{model="colours",version="1"} 1.0' in text
        assert 'method="POST",route="/predict",status="499"} 1.0' in text


_SLOW_MODEL = """
import pathlib, time
from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_serving import load_settings, run
go, original = pathlib.Path(__file__).with_name("go"), OnnxRuntimeModel.run
serving = False
def wait_and_run(model, rows):
    if serving:
        go.with_name("computing").touch()
    while serving and not go.exists():
        time.sleep(0.01)
    return original(model, rows)
OnnxRuntimeModel.run = wait_and_run
def listening(url):
    global serving
    serving = True
    print(url, flush=True)
if __name__ == "__main__":
    run(load_settings(), on_listening=listening)
    print("ended", flush=True)
"""


def test_a_full_queue_and_a_deadline_are_answered_while_the_model_is_busy(
    tmp_path, shared_bundle, png, running_server, wait_until, get
):
    program = tmp_path / "slow.py"
    program.write_text(_SLOW_MODEL)
    with running_server(tmp_path, shared_bundle, concurrency=1, queue_rows=1, program=program) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with ThreadPoolExecutor(2) as pool:
            post = {"content": png(), "trust_env": False, "timeout": 60}
            running = [pool.submit(httpx2.post, f"{url}/predict", **post)]
            wait_until((tmp_path / "computing").exists)
            late = httpx2.post(f"{url}/predict", headers={"X-Request-Timeout-Ms": "20"}, **post)
            assert (late.status_code, "deadline" in late.json()["error"]) == (504, True)
            running.append(pool.submit(httpx2.post, f"{url}/predict", **post))
            wait_until(lambda: 'cpt_serve_queued_rows{model="colours",version="1"} 1.0' in get(f"{url}/metrics").text)
            full = httpx2.post(f"{url}/predict", **post)
            assert full.status_code == 429
            assert int(full.headers["Retry-After"]) >= 1
            # What is queued is finished after SIGTERM, and only then the server ends.
            process.terminate()
            wait_until(lambda: get(f"{url}/health/ready").status_code == 503)
            Path(tmp_path / "go").touch()
            assert [answer.result().status_code for answer in running] == [200, 200]
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "ended\n")
    assert "Traceback" not in stderr


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_timeout_that_is_none_is_400(client, png, value):
    response = client.post("/predict", content=png(), headers={"X-Request-Timeout-Ms": value})
    assert response.status_code == 400
    assert "X-Request-Timeout-Ms" in response.json()["error"]


def test_models_are_asked_by_name_and_version(connect_to, shared_bundle, tmp_path, png):
    for name, version in (("one", "1"), ("one", "2"), ("two", "a")):
        shutil.copytree(shared_bundle.path, tmp_path / name / version)
    with connect_to(replace(shared_bundle, path=tmp_path)) as client:
        for path, expected in (
            ("/models/one/predict", ("one", "2")),
            ("/models/one/versions/1/predict", ("one", "1")),
            ("/models/two/predict", ("two", "a")),
            ("/predict?model=two", ("two", "a")),
        ):
            answer = client.post(path, content=png()).json()
            assert (answer["model"], answer["version"]) == expected
        for path, status in (
            ("/predict", 400),
            ("/predict?model=three", 404),
            ("/models/three/predict", 404),
            ("/models/one/versions/3/predict", 404),
            ("/models/..%2fone/predict", 404),
        ):
            response = client.post(path, content=png())
            assert (response.status_code, set(response.json())) == (status, {"error", "request_id"})
