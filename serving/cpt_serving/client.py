"""A small client of `/predict`, as `cpt predict --url` uses it."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError


@dataclass(frozen=True)
class Answer:
    """What a server says of some images.

    Args:
        model: Name of the model that answered.
        version: Its version.
        predictions: For each image, in order, its most probable classes, best first.
        timings: Where the server's time went, in milliseconds.
    """

    model: str
    version: str
    predictions: list[list[Prediction]]
    timings: dict[str, float]


class PredictClient:
    """A connection to a server; use it in a `with` statement.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`; `http://` may be left out.
        timeout_s: Seconds to wait for the connection, and for an answer.
        transport: Replaces the network, for tests.

    Raises:
        UsageError: If the address is none.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0, transport: httpx2.BaseTransport | None = None) -> None:
        self._url = _normalize(url)
        # A proxy of the environment could not reach this machine's own address.
        self._client = httpx2.Client(
            base_url=self._url,
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=not _is_loopback(self._url.host),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def predict(self, images: Sequence[Path | bytes], *, top_k: int = 1) -> Answer:
        """Ask for the classes of image files.

        Args:
            images: Paths of image files, or their content; one or more.
            top_k: How many classes each image gets.

        Raises:
            DataError: If a file cannot be read, or the server cannot be reached or does not answer in time.
            ImageError: If the server cannot decode an image.
            ImageTooLargeError: If an image or the request is larger than the server allows.
            CptError: If the server refuses or fails, or is none of this project's.
        """
        files = [("file", _part(index, image)) for index, image in enumerate(images)]
        try:
            response = self._client.post("/predict", params={"top_k": top_k}, files=files)
        except httpx2.TimeoutException as error:
            raise DataError(f"Expected an answer from {self._url}, but it did not come in time") from error
        except httpx2.HTTPError as error:
            raise DataError(
                f"Expected a server at {self._url}, but got: {str(error) or type(error).__name__}",
                hint="`cpt serve BUNDLE` starts one",
            ) from error
        if response.status_code != httpx2.codes.OK:
            raise _refusal(self._url, response)
        return self._parse(response)

    def _parse(self, response: httpx2.Response) -> Answer:
        try:
            content: dict[str, Any] = response.json()
            return Answer(
                model=content["model"],
                version=content["version"],
                predictions=[[Prediction(**entry) for entry in image] for image in content["predictions"]],
                timings=content["timings"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CptError(f"Expected a prediction from {self._url}, but got another answer: {error}") from error


def _normalize(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL as error:
        raise UsageError(f"Expected the address of a server, but got {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"Expected an address like http://127.0.0.1:8000, but got {url!r}")
    path = parsed.path.rstrip("/").removesuffix("/predict")
    return parsed.copy_with(path=path or "/", query=None, fragment=None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _part(index: int, image: Path | bytes) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        return f"image-{index + 1}", image
    try:
        return image.name, image.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a readable image file at {image}, but got: {error.strerror or error}") from error


def _refusal(url: httpx2.URL, response: httpx2.Response) -> CptError:
    """Return the error that an answer stands for."""
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return CptError(
            f"Expected a prediction from {url}, but got status {response.status_code}",
            hint="is it a server of `cpt serve`?",
        )
    kinds: dict[int, type[CptError]] = {400: ImageError, 413: ImageTooLargeError, 415: ImageError}
    return kinds.get(response.status_code, CptError)(f"{url} answered {response.status_code}: {message}")
