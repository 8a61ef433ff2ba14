"""The clients. There is one definition, for asyncio; the blocking client runs it on an event loop in a thread."""

import functools
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError
from cpt_serving.client.exchange import address_of, ask, is_loopback, unreachable

_IMAGE_ERRORS: Mapping[int, type[CptError]] = {400: ImageError, 413: ImageTooLargeError, 415: ImageError}
_TEXT_ERRORS: Mapping[int, type[CptError]] = {400: UsageError, 413: UsageError}


@dataclass(frozen=True)
class Answer:
    """What a server says of some images.

    Args:
        model: Name of the model that answered.
        version: Its version.
        predictions: For each image, in order, its most probable classes, best first.
        timings: Where the server's time went, in milliseconds.
        batch_rows: Images of the batch that these were computed in.
    """

    model: str
    version: str
    predictions: list[list[Prediction]]
    timings: dict[str, float]
    batch_rows: int | None = None


class AsyncPredictClient:
    """A connection to a server; use it in an `async with` statement. Tasks may share it.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`; `http://` may be left out.
        timeout_s: Seconds for one call, all its attempts and pauses together; the server hears of it.
        attempts: How often a request is sent at most, if the server answers 429 or 503.
        headers: Headers of every request, e.g. `{"Authorization": "Bearer ..."}`.
        transport: Replaces the network, for tests.

    Raises:
        UsageError: If the address is none.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        attempts: int = 5,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = address_of(url)
        self._client = httpx2.AsyncClient(
            base_url=self._url,
            headers=headers,
            # A proxy of the environment could not reach this machine's own address.
            trust_env=not is_loopback(self._url.host),
            transport=transport,
        )
        self._ask = functools.partial(ask, self._client, timeout_s=timeout_s, attempts=attempts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def predict(self, images: Sequence[Path | bytes], *, top_k: int = 1, model: str | None = None) -> Answer:
        """Ask for the classes of image files.

        Args:
            images: Paths of image files, or their content; one or more.
            top_k: How many classes each image gets.
            model: Which model, where several are served.

        Raises:
            DataError: If a file cannot be read, or the server cannot be reached or does not answer in time.
            ImageError: If the server cannot decode an image; `ImageTooLargeError` if one, or all, are too large for it.
            UsageError: If there is no such model.
            CptError: If the server refuses or fails otherwise, or is none of this project's.
        """
        query = {"top_k": top_k} if model is None else {"top_k": top_k, "model": model}
        body = {"params": query, "files": [("file", _part(index, image)) for index, image in enumerate(images)]}
        response = await self._ask("/predict", body, kinds=_IMAGE_ERRORS)
        try:
            content = response.json()
            predictions = [[Prediction(**entry) for entry in image] for image in content["predictions"]]
            model, version, timings = content["model"], content["version"], content["timings"]
            return Answer(model, version, predictions, timings, content.get("batch_rows"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CptError(f"Expected a prediction from {self._url}, but got another answer: {error}") from error

    async def generate(
        self, prompt: str, *, model: str | None = None, **parameters: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of `/generate`: each has what of the text is new, and the last one why it ended.

        Who stops listening ends the generation. `timeout_s` holds for the first event and then for each.

        Args:
            prompt: What the text begins with.
            model: Which model, where several are served.
            parameters: What else `/generate` takes, such as `max_tokens`.

        Raises:
            UsageError: If the server does not take the request.
            DataError: If the server cannot be reached, or breaks off.
            CptError: If it refuses or fails otherwise.
        """
        query = {} if model is None else {"model": model}
        body = {"params": query, "json": {**parameters, "prompt": prompt, "stream": True}}
        response = await self._ask("/generate", body, kinds=_TEXT_ERRORS, stream=True)
        finished = False
        try:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    event = _event(line.removeprefix("data: "))
                    finished = "finish_reason" in event
                    yield event
        except httpx2.HTTPError as error:
            raise unreachable(self._url, error) from error
        finally:
            await response.aclose()
        if not finished:
            raise DataError("Expected the end of the text, but the server broke off")


class PredictClient:
    """The same for threads, which may share it; use it in a `with` statement.

    Args:
        url: Address of the server.
        options: What `AsyncPredictClient` takes besides.

    Raises:
        UsageError: If the address is none.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._client = AsyncPredictClient(url, **options)
        self._loop: AbstractContextManager[BlockingPortal] = start_blocking_portal()

    def __enter__(self) -> Self:
        self._portal = self._loop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._portal.call(self._client.__aexit__)
        finally:
            self._loop.__exit__(kind, error, trace)

    def predict(self, images: Sequence[Path | bytes], *, top_k: int = 1, model: str | None = None) -> Answer:
        """Ask for the classes of image files, as `AsyncPredictClient.predict` does."""
        return self._portal.call(lambda: self._client.predict(images, top_k=top_k, model=model))

    def generate(self, prompt: str, *, model: str | None = None, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield the events of a text, as `AsyncPredictClient.generate` does."""
        events = self._client.generate(prompt, model=model, **parameters)
        while (event := self._portal.call(lambda: anext(events, None))) is not None:
            try:
                yield event
            except GeneratorExit:
                self._portal.call(events.aclose)
                raise


def _event(text: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise DataError(f"Expected events of JSON, but got {text!r:.100}") from error
    if "error" in event:
        raise DataError(f"The server stopped: {event['error']}")
    return event


def _part(index: int, image: Path | bytes) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        return f"image-{index + 1}", image
    try:
        return image.name, image.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a readable image file at {image}, but got: {error.strerror or error}") from error
