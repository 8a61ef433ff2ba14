"""Models that administrators load and unload while clients use them, over real connections."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx2

from cpt_serving.access.api_keys import add_key

SECONDS = 2.0
ZEROS = {"inputs": [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}]}


def asked(url, done, requests, headers):
    """Count the statuses of the answers to requests that are sent until `done`."""
    seen = Counter()
    with httpx2.Client(base_url=url, trust_env=False, timeout=30, headers=headers) as client:
        while not done.is_set():
            path, content = random.choice(requests)
            seen[client.post(path, json=content).status_code] += 1
    return seen


def test_requests_are_answered_or_refused_and_never_fail(tmp_path, shared_bundle, serve_here):
    models = tmp_path / "models" / "colours"
    models.mkdir(parents=True)
    (models / "1").symlink_to(shared_bundle.path, target_is_directory=True)
    key = add_key(tmp_path / "keys.txt", "boss", ["infer", "admin"])
    headers, done = {"X-API-Key": key}, Event()
    infer = [(f"/v2/models/colours{version}/infer", ZEROS) for version in ("", "/versions/1")]
    changes = [(f"/v2/repository/models/colours/{change}", {}) for change in ("load", "unload")]
    with serve_here(tmp_path / "models", api_keys=tmp_path / "keys.txt") as url, ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(asked, url, done, infer, headers) for _ in range(4)]
        administrators = [pool.submit(asked, url, done, changes, headers) for _ in range(2)]
        done.wait(SECONDS)
        done.set()
        answers = sum((each.result() for each in clients), Counter())
        changed = sum((each.result() for each in administrators), Counter())
        last = [httpx2.post(url + path, json=content, headers=headers) for path, content in (changes[0], infer[0])]
    assert set(changed) == {200}
    assert answers[200] > 0
    assert set(answers) <= {200, 404, 503}  # computed, not there, or just being loaded
    assert [answer.status_code for answer in last] == [200, 200]
