import io
from collections.abc import Callable

import pytest
from PIL import Image

from cpt_serving.settings import ServeSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment's settings away from the tests."""
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"CPT_SERVE_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Makes a PNG file of one colour."""

    def make(colour: str = "red") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        return file.getvalue()

    return make
