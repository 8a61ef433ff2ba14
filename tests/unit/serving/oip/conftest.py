import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx2
import pytest

from cpt_deploy.bundle import Bundle

ADDRESS = "127.0.0.1:"


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Starts `cpt serve` in a process of its own; gives the address once the model is ready."""
    return _serve


@contextmanager
def _serve(bundle: Bundle, *options: str, **settings: object) -> Iterator[str]:
    environment = {f"CPT_SERVE_{name.upper()}": str(value) for name, value in {"drain_s": 0, **settings}.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "cpt_cli", "serve", str(bundle.path), "--port", "0", "--quiet", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert ADDRESS in url, process.communicate()[1]
        with httpx2.Client(trust_env=False, timeout=30) as client:
            # The first answer comes when the models are loaded.
            assert client.get(f"{url}/v2/health/ready").status_code == 200
        yield url.removeprefix("http://")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
