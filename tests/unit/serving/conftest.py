import io
import time
from collections.abc import Callable, Iterator

import pytest
from PIL import Image
from starlette.testclient import TestClient

from cpt_deploy.bundle import Bundle
from cpt_serving import create_app, load_settings
from cpt_serving.settings import ServeSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment's settings away from the tests."""
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"CPT_SERVE_{name.upper()}", raising=False)


@pytest.fixture(scope="module")
def client(shared_bundle: Bundle) -> Iterator[TestClient]:
    """A client of a server that is ready."""
    with connect(shared_bundle) as connected:
        yield connected


@pytest.fixture
def connect_to() -> Callable[..., TestClient]:
    """Makes a client of a server with further settings; entering it starts the server."""
    return connect


def connect(bundle: Bundle, **settings: object) -> TestClient:
    return ReadyClient(
        create_app(load_settings(bundle=bundle.path, concurrency=2, **settings)), raise_server_exceptions=False
    )


class ReadyClient(TestClient):
    """A client that waits until the model is loaded or has failed to."""

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
