"""A server under mixed traffic for a while: no error of its own, and nothing that it keeps for ever.

Some seconds here. The hour, with what it saw:

    CPT_SOAK_SECONDS=3600 make test PYTEST_ARGS='-k soak --log-cli-level=INFO --timeout 4000'
"""

import json
import logging
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("CPT_SOAK_SECONDS", "12"))
WARM_UP = 0.3
"""The share of the time in which memory may grow to what the traffic needs."""
CLIENTS = 4
GROWTH_MB = 16.0
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


def one_request(client: httpx2.Client, model: str, picture: bytes, generator: random.Random) -> str:
    """Send a request of some kind, good or bad; return what came of it."""
    rows = np.zeros((generator.randint(1, 24), 3, 8, 8), np.float32)
    infer = f"/v2/models/{model}/infer"
    body, headers = tensor_body(rows)
    kind = generator.choice(["infer", "predict", "json", "late", "leave", "corrupt", "unknown", "bomb", "look"])
    try:
        match kind:
            case "infer":
                answer = client.post(infer, content=body, headers=headers)
            case "predict":
                answer = client.post("/predict", files=[("file", ("a.png", picture))] * generator.randint(1, 4))
            case "json":
                answer = client.post("/predict", json={"instances": np.zeros((8, 8, 3), np.uint8).tolist()})
            case "late":
                answer = client.post(infer, content=body, headers=headers | {"X-Request-Timeout-Ms": "0.01"})
            case "leave":
                answer = client.post(infer, content=body, headers=headers, timeout=0.001)
            case "corrupt":
                cut = generator.randrange(len(body))
                answer = client.post(infer, content=body[:cut], headers=headers)
            case "unknown":
                answer = client.post(f"/v2/models/{generator.randrange(10**9)}/infer", content=body, headers=headers)
            case "bomb":
                answer = client.post("/predict", content=b"\x89PNG" * 40_000, headers={"Content-Type": "image/png"})
            case _:
                answer = client.get(generator.choice(["/metrics", "/stats", "/v2", f"/v2/models/{model}/stats"]))
    except httpx2.TransportError as error:
        return f"{kind} {type(error).__name__}"
    return f"{kind} {answer.status_code}"


def traffic(url: str, model: str, picture: bytes, seed: int, stop: threading.Event) -> Counter[str]:
    generator, seen = random.Random(seed), Counter[str]()
    with httpx2.Client(base_url=url, trust_env=False, timeout=30) as client:
        while not stop.is_set():
            seen[one_request(client, model, picture, generator)] += 1
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, where Linux tells what a process holds")
def test_a_soaked_server_answers_and_keeps_nothing(tmp_path, shared_bundle, png, running_server, wait_until, get):
    limits = {"queue_rows": 32, "max_body_bytes": 100_000}
    with running_server(tmp_path, shared_bundle, **limits) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            futures = [pool.submit(traffic, url, shared_bundle.name, png("red"), seed, stop) for seed in range(CLIENTS)]
            time.sleep(WARM_UP * SECONDS)
            before = held(process.pid)
            time.sleep((1 - WARM_UP) * SECONDS)
            stop.set()
            seen = sum((future.result() for future in futures), Counter[str]())
        wait_until(lambda: "requests_in_flight 1.0" in get(f"{url}/metrics").text)  # the scrape itself
        after = held(process.pid)
        logger.info("%d requests: %s", sum(seen.values()), dict(sorted(seen.items())))
        logger.info("megabytes, files, threads: %s, then %s", before, after)

        answered = {outcome.split()[1] for outcome in seen if outcome.split()[1].isdigit()}
        assert answered <= {str(status) for status in ALLOWED}
        assert {outcome.split()[0] for outcome in seen if not outcome.split()[1].isdigit()} <= {"leave", "bomb"}
        assert {"infer 200", "predict 200", "corrupt 400", "unknown 404", "bomb 413"} <= set(seen)
        assert after[0] - before[0] < GROWTH_MB
        assert after[1] <= before[1] + CLIENTS
        assert after[2] <= before[2] + 2
        assert get(f"{url}/health/ready").status_code == 200
