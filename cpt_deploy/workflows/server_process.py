"""Run a server in a separate process: start it on a free port, wait until it is ready, and stop it gracefully."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_deploy.errors import CptError

READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 15.0
_PAUSE_S = 0.1


@contextmanager
def running_server(bundle: Path, log: Path) -> Iterator[str]:
    """Serve a bundle inside the context; yields the server's address once it is ready.

    Args:
        bundle: The bundle.
        log: File for the server's log.

    Raises:
        CptError: If the server ends or does not become ready.
    """
    words = [sys.executable, "-m", "cpt_cli", "serve", str(bundle), "--port", "0", "--json"]
    # No load balancer routes traffic to this server, so it can stop without draining.
    environment = os.environ | {"CPT_SERVE_DRAIN_S": "0"}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            url = _address(process, log)
            _await_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.communicate(timeout=STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    """Return the address from the JSON object that the server prints when it has a port."""
    assert process.stdout is not None
    line = process.stdout.readline()
    document = json.loads(line) if line else {}
    if "url" not in document:
        process.wait()
        message = document.get("error", {}).get("message") or f"it ended with exit code {process.returncode}"
        raise CptError(f"Expected the server to start, but got: {message}", hint=f"its log is {log}")
    return str(document["url"])


def _await_ready(url: str, process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    # A proxy from the environment could not reach this machine's local address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"{url}/health/ready", timeout=5):
                return
        except urllib.error.URLError:  # 503 until the model is loaded
            time.sleep(_PAUSE_S)
    raise CptError(f"Expected the server at {url} to become ready, but it did not", hint=f"its log is {log}")
