"""The clients of docs/client.md, and a load test, against a server of real digits."""

import asyncio
import json
import re
from pathlib import Path

import httpx2

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


def test_the_examples_of_the_page_run(server, digits, monkeypatch, tmp_path):
    blocking, asynchronous = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("image.png").write_bytes(digits[0].read_bytes())
    names: dict[str, object] = {}
    for block in (blocking, asynchronous):
        exec(block.replace("http://127.0.0.1:8000", server), names)
    assert names["logits"].shape == (32, 10)
    assert names["shape"] == (-1, 1, 8, 8)
    images = [path.read_bytes() for path in digits]
    labels = asyncio.run(names["classify"](images))
    assert labels[0] == names["best"].label
    right = sum(path.stem.endswith(f"-{label}") for path, label in zip(digits, labels, strict=True))
    assert right >= 9


def test_a_load_test_of_a_running_server(cpt, server, digits):
    done = cpt("load-test", server, "--clients", "1,4", "--requests", 40, "--warm-up", 0, "--json")
    assert [level["requests"] for level in json.loads(done.stdout)["levels"]] == [40, 40]
    before = httpx2.get(f"{server}/stats", trust_env=False).json()["requests"]
    cpt(
        "load-test",
        server,
        "--clients",
        2,
        "--requests",
        10,
        "--warm-up",
        0,
        "--image",
        digits[0],
        "--image",
        digits[1],
    )
    assert httpx2.get(f"{server}/stats", trust_env=False).json()["requests"] >= before + 10
