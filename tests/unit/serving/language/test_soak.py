"""A server under mixed traffic for a while: no error of its own, no long silence, and nothing that it keeps for ever.

Images and text, over HTTP and gRPC, well and badly asked. Some seconds here; an hour, with what it saw:

    CPT_SOAK_SECONDS=3600 make test PYTEST_ARGS='-k soak --log-cli-level=INFO --timeout 4500'
"""

import json
import logging
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from tritonclient.utils import InferenceServerException  # noqa: E402

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("CPT_SOAK_SECONDS", "12"))
WARM_UP = 0.3
"""The share of the time in which memory may grow to what the traffic needs."""
CLIENTS = 4
GROWTH_MB = 16.0
SILENCE_S = 5.0
IMAGES, TEXTS = "colours", "bigram"
ALLOWED = {200, 400, 404, 408, 413, 415, 422, 429, 504}


def held(pid: int) -> tuple[float, int, int]:
    """Return resident megabytes, open files, and threads of a process."""
    process = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    files = len(list((process / "fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"])


def tensor_body(rows: np.ndarray, **changes: object) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "image",
        "shape": list(rows.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = json.dumps({"inputs": [tensor | changes], "parameters": {"binary_data_output": True}}).encode()
    return head + rows.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


IMAGE_KINDS = ("infer", "late", "leave", "corrupt", "unknown", "chunked", "upgrade", "predict", "json", "bomb")
OTHER_KINDS = ("generate", "stream", "leave-stream", "score", "grpc", "grpc-unknown", "nonsense", "look")


def one_request(client: httpx2.Client, grpc: object, picture: bytes, generator: random.Random) -> str:
    """Send a request of some kind, good or bad; return what came of it."""
    kind = generator.choice(IMAGE_KINDS + OTHER_KINDS)
    try:
        if kind in IMAGE_KINDS:
            return f"{kind} {ask_about_images(client, kind, picture, generator)}"
        return f"{kind} {ask_otherwise(client, grpc, kind, generator)}"
    except httpx2.TransportError as error:
        return f"{kind} {type(error).__name__}"
    except InferenceServerException as error:
        return f"{kind} {error.status()}"


def ask_about_images(client: httpx2.Client, kind: str, picture: bytes, generator: random.Random) -> int:
    infer, predict = f"/v2/models/{IMAGES}/infer", f"/models/{IMAGES}/predict"
    body, headers = tensor_body(np.zeros((generator.randint(1, 24), 3, 8, 8), np.float32))
    plain = {"content": body, "headers": headers}
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
    path, options = {
        "infer": (infer, plain),
        "late": (infer, {"content": body, "headers": headers | {"X-Request-Timeout-Ms": "0.01"}}),
        "leave": (infer, plain | {"timeout": 0.001}),
        "corrupt": (infer, plain | {"content": body[: generator.randrange(len(body))]}),
        "unknown": (f"/v2/models/{generator.randrange(10**9)}/infer", plain),
        "chunked": (infer, plain | {"content": pieces}),
        "upgrade": (infer, {"content": body, "headers": headers | offer}),
        "predict": (predict, {"files": [("file", ("a.png", picture))] * generator.randint(1, 4)}),
        "json": (predict, {"json": {"instances": np.zeros((8, 8, 3), np.uint8).tolist()}}),
        "bomb": (predict, {"content": b"\x89PNG" * 40_000, "headers": {"Content-Type": "image/png"}}),
    }[kind]
    return client.post(path, **options).status_code


def ask_otherwise(client: httpx2.Client, grpc: object, kind: str, generator: random.Random) -> int:
    generate, text = f"/generate?model={TEXTS}", {"prompt": "the company said", "seed": 1}
    match kind:
        case "generate" | "stream":
            wanted = {"max_tokens": generator.randint(1, 40), "stream": kind == "stream"}
            return client.post(generate, json=text | wanted).status_code
        case "leave-stream":
            with client.stream("POST", generate, json=text | {"max_tokens": 1000, "stream": True}) as answer:
                next(answer.iter_lines())
                return answer.status_code
        case "score":
            return client.post(f"/score?model={TEXTS}", json={"text": "the company said it was new"}).status_code
        case "grpc" | "grpc-unknown":
            rows = np.zeros((generator.randint(1, 24), 3, 8, 8), np.float32)
            tensor = triton.InferInput("image", list(rows.shape), "FP32")
            tensor.set_data_from_numpy(rows)
            grpc.infer(IMAGES if kind == "grpc" else "another", [tensor])
            return 200
        case "nonsense":
            return nonsense(client.base_url, generator.randbytes(100))
        case _:
            return client.get(generator.choice(["/metrics", "/stats", "/v2", f"/v2/models/{IMAGES}/stats"])).status_code


def nonsense(url: httpx2.URL, sent: bytes) -> int:
    """Send what is no HTTP; return the status."""
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + sent.replace(b"\n", b"") + b"\r\n\r\n")
        return int(connection.recv(65_536).split()[1])


def traffic(url: str, grpc_port: int, picture: bytes, seed: int, stop: threading.Event) -> Counter[str]:
    generator, seen = random.Random(seed), Counter[str]()
    with (
        httpx2.Client(base_url=url, trust_env=False, timeout=30) as client,
        triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as grpc,
    ):
        while not stop.is_set():
            seen[one_request(client, grpc, picture, generator)] += 1
    return seen


def longest_silence(url: str, stop: threading.Event) -> float:
    """Return the longest time, in seconds, that the server took to say that it lives."""
    longest = 0.0
    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        while not stop.wait(0.02):
            started = time.monotonic()
            assert client.get("/health/live").status_code == 200
            longest = max(longest, time.monotonic() - started)
    return longest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, where Linux tells what a process holds")
def test_a_soaked_server_answers_and_keeps_nothing(
    tmp_path, shared_bundle, language_bundle, png, running_server, wait_until, get
):
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # not a line for each of these requests
    models, grpc_port = tmp_path / "models", free_port()
    for name, bundle in ((IMAGES, shared_bundle), (TEXTS, language_bundle)):
        shutil.copytree(bundle.path, models / name / "1")
    limits = {"queue_rows": 32, "max_body_bytes": 100_000, "grpc_port": grpc_port}
    with running_server(tmp_path, SimpleNamespace(path=models), **limits) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            silence = pool.submit(longest_silence, url, stop)
            futures = [pool.submit(traffic, url, grpc_port, png("red"), seed, stop) for seed in range(CLIENTS)]
            time.sleep(WARM_UP * SECONDS)
            before = held(process.pid)
            time.sleep((1 - WARM_UP) * SECONDS)
            stop.set()
            seen = sum((future.result() for future in futures), Counter[str]())
        wait_until(lambda: "requests_in_flight 1.0" in get(f"{url}/metrics").text)  # the scrape itself
        after = held(process.pid)
        logger.info("%d requests: %s", sum(seen.values()), dict(sorted(seen.items())))
        logger.info("megabytes, files, threads: %s, then %s", before, after)
        logger.info("longest silence: %.3f s", silence.result())

        answered = {outcome.split()[1] for outcome in seen if outcome.split()[1].isdigit()}
        assert answered <= {str(status) for status in ALLOWED}
        others = {outcome for outcome in seen if not outcome.split()[1].isdigit() and outcome.split()[0] != "leave"}
        assert {outcome for outcome in others if not outcome.startswith("bomb ")} <= {
            "grpc-unknown StatusCode.NOT_FOUND", "grpc StatusCode.RESOURCE_EXHAUSTED",
        }  # fmt: skip
        expected = "infer predict chunked upgrade generate stream leave-stream score grpc"
        assert {f"{kind} 200" for kind in expected.split()} <= set(seen)
        assert {"corrupt 400", "unknown 404", "bomb 413", "nonsense 400", "late 504"} <= set(seen)
        assert silence.result() < SILENCE_S
        assert after[0] - before[0] < GROWTH_MB
        assert after[1] <= before[1] + CLIENTS
        assert after[2] <= before[2] + 2
        assert get(f"{url}/health/ready").status_code == 200
