"""The end of a real server: bounded, whoever holds on, and without a lost request."""

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import pytest

from cpt_deploy.bundle import write_bundle
from cpt_deploy.bundle.layout import FORMAT_VERSION
from cpt_serving.shutdown import Shutdown, finished

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
# Far above what a busy machine takes, and far below the patience of the tests.
GRACE_S = 600


def labelled(contents, labels):
    """The contents with other labels."""
    return replace(contents, processor=replace(contents.processor, labels=labels))


def ended(process):
    """Wait for the end and check that it was one in order."""
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout.splitlines()[-1:]) == (0, ["ended"]), stderr
    assert "Traceback" not in stderr


def test_the_deadline_is_one_for_all_and_comes_nearer_with_each_signal():
    async def scenario():
        announced = []
        shutdown = Shutdown(100, 1000, lambda: announced.append(1))
        assert (shutdown.draining, shutdown.remaining_s) == (False, 1000)
        shutdown.begin()
        assert (shutdown.draining, announced) == (True, [1])
        waiting = asyncio.create_task(shutdown.stopping())
        await asyncio.sleep(0)
        assert not waiting.done()
        shutdown.begin()
        await waiting
        assert 900 < shutdown.remaining_s <= 1000
        shutdown.stop()
        assert shutdown.remaining_s > 900
        shutdown.begin()
        assert (shutdown.remaining_s, announced) == (0, [1])

    asyncio.run(scenario())


def test_what_blocks_is_not_waited_for_for_ever():
    async def scenario():
        forever = threading.Event()
        assert await finished(lambda: None, 60)
        assert not await finished(forever.wait, 0.05)
        forever.set()

    asyncio.run(scenario())


def test_clients_that_keep_their_connections_lose_no_request(
    tmp_path, shared_bundle, png, running_server, wait_until, get
):
    statuses, closing, stop = [], [], threading.Event()

    def ask(url):
        with httpx2.Client(base_url=url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/predict", content=png())
                statuses.append(answer.status_code)
                if answer.headers.get("Connection") == "close":
                    # As a load balancer does that sees readiness fail: no further connection.
                    closing.append(answer.status_code)
                    return

    with running_server(tmp_path, shared_bundle, drain_s=3) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask, url) for _ in range(4)]
            wait_until(lambda: len(statuses) > 20)
            process.terminate()
            for client in clients:
                client.result(timeout=60)
        ended(process)
    assert set(statuses) == {200}
    assert closing == [200] * 4


def test_a_pipe_that_nobody_reads_holds_neither_requests_nor_the_end(tmp_path, shared_bundle, running_server, get):
    program = tmp_path / "serve.py"
    program.write_text(_FULL_PIPES)
    settings = {"access_log": True, "drain_s": 0, "shutdown_s": GRACE_S}
    with running_server(tmp_path, shared_bundle, program=program, **settings) as (process, url):
        for _ in range(50):
            assert get(f"{url}/v2").status_code == 200
        process.terminate()
        assert process.wait(60) == 0


_FULL_PIPES = """
import fcntl, os
from cpt_serving import load_settings, run
def listening(url):
    print(url, flush=True)
    for descriptor in (1, 2):
        os.set_blocking(descriptor, False)
        try:
            while True:
                os.write(descriptor, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(descriptor, True)
if __name__ == "__main__":
    run(load_settings(), on_listening=listening)
"""


def test_an_idle_client_under_tls_does_not_hold_the_end(tmp_path, shared_bundle, tls, running_server, wait_until):
    authority, certificate, key = tls
    settings = {"tls_cert": certificate, "tls_key": key, "drain_s": 0, "shutdown_s": GRACE_S, "keep_alive_s": 3600}
    with running_server(tmp_path, shared_bundle, **settings) as (process, url):
        context = ssl.create_default_context(cafile=str(authority))
        host, port = url.removeprefix("https://").split(":")
        with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as idle:
            idle.sendall(LIVE)
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
            process.terminate()  # the client does not read, and so never says goodbye
            ended(process)


def test_an_idle_stream_of_grpc_does_not_hold_the_end(tmp_path, shared_bundle, running_server, wait_until, get):
    grpc = pytest.importorskip("grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    port = free_port()
    settings = {"grpc_port": port, "drain_s": 0, "shutdown_s": GRACE_S}
    with running_server(tmp_path, shared_bundle, **settings) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        asked, over = threading.Event(), threading.Event()

        def questions():
            yield service_pb2.ModelInferRequest(model_name="unknown")
            asked.set()
            over.wait(120)

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            answers = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(questions())
            assert "unknown" in next(answers).error_message
            assert asked.wait(60)
            process.terminate()
            assert list(answers) == []  # ended by the server, in order
            over.set()
            ended(process)


def test_a_model_that_never_comes_back_holds_neither_http_nor_grpc(
    tmp_path, shared_bundle, png, running_server, wait_until, get
):
    grpc = pytest.importorskip("grpc")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    port, program = free_port(), tmp_path / "stuck.py"
    program.write_text(_STUCK_MODEL)
    settings = {"grpc_port": port, "drain_s": 0, "shutdown_s": 3, "concurrency": 1}
    with running_server(tmp_path, shared_bundle, program=program, **settings) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with ThreadPoolExecutor(1) as pool, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            lost = pool.submit(httpx2.post, f"{url}/predict", content=png(), trust_env=False, timeout=120)
            request = service_pb2.ModelInferRequest(model_name="colours", raw_input_contents=[bytes(4 * 192)])
            request.inputs.add(name="image", datatype="FP32", shape=[1, 3, 8, 8])
            call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request)
            wait_until(lambda: "cpt_serve_requests_in_flight 3.0" in get(f"{url}/metrics").text)
            process.terminate()
            # The model never comes back: both are given up, and the process ends in order all the same.
            assert process.wait(120) == 0
            assert lost.exception() is not None or lost.result().status_code >= 500
            assert call.exception() is not None


_STUCK_MODEL = """
import threading
from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_serving import load_settings, run
original, serving = OnnxRuntimeModel.run_checked, False
def stuck(model, rows):
    if serving:
        threading.Event().wait()
    return original(model, rows)
OnnxRuntimeModel.run_checked = stuck
def listening(url):
    global serving
    serving = True
    print(url, flush=True)
if __name__ == "__main__":
    run(load_settings(), on_listening=listening)
    print("ended", flush=True)
"""


def test_a_hangup_looks_for_models_and_ends_nothing(
    tmp_path, shared_bundle, bundle_contents, png, running_server, wait_until, get
):
    models = tmp_path / "models"
    shutil.copytree(shared_bundle.path, models / "colours" / "1")
    with running_server(tmp_path, replace(shared_bundle, path=models), drain_s=0) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        write_bundle(models / "colours" / "2", contents=labelled(bundle_contents(), ("rot", "gruen", "blau")))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(url, png)["version"] == "2")
        shutil.rmtree(models / "colours" / "1")
        process.send_signal(signal.SIGHUP)
        version = f'cpt_serve_model_info{{format_version="{FORMAT_VERSION}",model="colours"'
        wait_until(lambda: version in get(f"{url}/metrics").text)
        wait_until(lambda: get(f"{url}/metrics").text.count("\ncpt_serve_model_info{") == 1)
        process.terminate()
        ended(process)


def ask(url, png):
    return httpx2.post(f"{url}/predict", content=png(), trust_env=False, timeout=30).json()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_process_whose_end_hangs_is_ended_all_the_same(tmp_path, shared_bundle):
    program = tmp_path / "hangs.py"
    program.write_text(_HANGING_END)
    settings = {"BUNDLE": shared_bundle.path, "PORT": 0, "DRAIN_S": 0, "SHUTDOWN_S": 0, "ACCESS_LOG": False}
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, **{f"CPT_SERVE_{name}": str(value) for name, value in settings.items()}},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline().startswith("http://")
        process.terminate()
        assert process.wait(120) == 1


_HANGING_END = """
import asyncio
from cpt_serving import load_settings, run
from cpt_serving.background import Background
async def never(_background):
    await asyncio.Event().wait()
Background.close = never
if __name__ == "__main__":
    run(load_settings(), on_listening=lambda url: print(url, flush=True))
"""
