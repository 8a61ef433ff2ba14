import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import trustme
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from cpt_deploy.bundle import Bundle, write_bundle
from cpt_serving import create_app, load_settings
from cpt_serving.app import app_of, create_service
from cpt_serving.inference.engine import Engine
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment's settings away from the tests."""
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"CPT_SERVE_{name.upper()}", raising=False)


@pytest.fixture
def models(tmp_path: Path, shared_bundle: Bundle) -> Callable[..., Path]:
    """Makes a directory of models, each a list of versions."""

    def make(**versions: list[str]) -> Path:
        for name, names in versions.items():
            for version in names:
                shutil.copytree(shared_bundle.path, tmp_path / "models" / name / version)
        return tmp_path / "models"

    return make


@asynccontextmanager
async def started(path: Path, **settings: object) -> AsyncIterator[ModelRepository]:
    """Keep the models of a bundle or directory loaded, without a server."""
    repository = ModelRepository(load_settings(bundle=path, concurrency=1, **settings))
    await repository.start()
    try:
        yield repository
    finally:
        repository.close()


@pytest.fixture(scope="module")
def client(shared_bundle: Bundle) -> Iterator[TestClient]:
    """A client of a server that is ready."""
    with connect(shared_bundle) as connected:
        yield connected


@pytest.fixture(scope="session")
def connect_to() -> Callable[..., TestClient]:
    """Makes a client of a server with further settings; entering it starts the server."""
    return connect


def connect(bundle: Bundle, **settings: object) -> TestClient:
    chosen = load_settings(bundle=bundle.path, **{"concurrency": 2, "access_log": False, **settings})
    service = create_service(chosen)
    client = ReadyClient(app_of(service), raise_server_exceptions=False)
    client.service = service
    return client


class ReadyClient(TestClient):
    """A client that waits until the model is loaded or has failed to."""

    service: Service

    def __enter__(self) -> "ReadyClient":
        super().__enter__()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and "being loaded" in self.get("/health/ready").text:
            time.sleep(0.01)
        return self


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Makes a PNG file of one colour."""

    def make(colour: object = "red", size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
        file = io.BytesIO()
        Image.new(mode, size, colour).save(file, "PNG")
        return file.getvalue()

    return make


PROGRAM = """
from cpt_serving import load_settings, run
if __name__ == "__main__":
    run(load_settings(), on_listening=lambda url: print(url, flush=True))
    print("ended", flush=True)
"""


@contextmanager
def server_process(tmp_path, bundle, program=None, **settings):
    """A server in a process of its own, with its address."""
    if program is None:
        program = tmp_path / "serve.py"
        program.write_text(PROGRAM)
    values = {"bundle": bundle.path, "port": 0, "drain_s": 0.5, "access_log": False, **settings}
    environment = {f"CPT_SERVE_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith(("http://127.0.0.1:", "https://127.0.0.1:")), process.communicate()[1]
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


def get_now(url):
    return httpx2.get(url, trust_env=False, timeout=30)


def poll_until(condition):
    """Poll; a server that hangs ends the test instead of the test run."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("the condition was never met")


@pytest.fixture(scope="session")
def running_server():
    """Starts a server in a process of its own: `with running_server(tmp_path, bundle, ...) as (process, url)`."""
    return server_process


@pytest.fixture(scope="session")
def get():
    """Gets a URL of this machine."""
    return get_now


@pytest.fixture(scope="session")
def wait_until():
    """Waits for a condition."""
    return poll_until


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """An authority of the test's own, and a certificate of it for this machine: authority, certificate, key."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return folder / "authority.pem", folder / "cert.pem", folder / "key.pem"


@contextmanager
def serving(path, **settings) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    with listening(create_app(load_settings(bundle=path, **settings))) as url:
        yield url


@contextmanager
def listening(app, **options) -> Iterator[str]:
    """The address of an app under uvicorn, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def serve_here():
    """Serves in a thread of this process: `with serve_here(path, ...) as url`."""
    return serving


@pytest.fixture(scope="session")
def listen_here():
    """Runs an app under uvicorn in a thread of this process: `with listen_here(app, ...) as url`."""
    return listening


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, Debian's or whatever the machine has."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    # Not for longer than a module: while it runs no other test can call `asyncio.run`.
    with sync_api.sync_playwright() as playwright:
        # A sandbox needs privileges that containers lack; the pages are our own.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


async def infer(engine: Engine[Any]) -> Any:
    """Return the inference of a black image of the shared bundle."""
    with engine.admit() as admission:
        return await admission.compute({"image": np.zeros((1, 3, 8, 8), np.float32)})


def states(repository: ModelRepository) -> dict[tuple[str, str], str]:
    """Return the state of each model, by name and version."""
    return {(status.name, status.version): status.state.value for status in repository.models.index()}


def replace_labels(path: Path, bundle_contents: Callable[[], Any], labels: tuple[str, ...]) -> None:
    """Put another bundle in the place of one, as `cpt export` does."""
    shutil.rmtree(path)
    contents = bundle_contents()
    write_bundle(path, contents=replace(contents, processor=replace(contents.processor, labels=labels)))
