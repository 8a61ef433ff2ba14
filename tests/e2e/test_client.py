"""The clients and the load test of docs/how-to/client.md, against a server of real digits."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.slow  # the client is tested in tests/unit/serving by default

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "client.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(server, digits, monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    Path("image.png").write_bytes(digits[0].read_bytes())
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("127.0.0.1:8000", server.removeprefix("http://")), names)
    assert names["logits"].shape == (32, 10)
    images = [path.read_bytes() for path in digits]
    labels = asyncio.run(names["classify"](images))
    assert labels[0] == names["best"].label
    right = sum(path.stem.endswith(f"-{label}") for path, label in zip(digits, labels, strict=True))
    assert right >= 9


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_the_load_test_of_the_page_is_answered(server, digits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("image.png").write_bytes(digits[0].read_bytes())
    Path("image.lua").write_text(re.search(r"```lua\n(.*?)```", PAGE, re.DOTALL)[1])
    (command,) = re.findall(r"^    (wrk .*)$", PAGE, re.MULTILINE)
    words = command.replace("http://127.0.0.1:8000", server).replace("10s", "1s").split()
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert "99%" in done.stdout
    assert "Non-2xx" not in done.stdout
    answered = int(re.search(r"(\d+) requests in", done.stdout)[1])
    stats = httpx2.get(f"{server}/stats", trust_env=False).json()
    assert 0 < answered <= stats["requests"]
