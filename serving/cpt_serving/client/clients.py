"""The clients: one implementation for asyncio, which the blocking client runs on an event loop in a thread."""

import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError
from cpt_serving.client.exchange import address_of, ask, is_loopback, shown_address, unreachable

_IMAGE_ERRORS: Mapping[int, type[CptError]] = {400: ImageError, 413: ImageTooLargeError, 415: ImageError}
_TEXT_ERRORS: Mapping[int, type[CptError]] = {400: UsageError, 413: UsageError}


@dataclass(frozen=True)
class Answer:
    """Predictions of a server for some images or rows.

    Args:
        model: Name of the model that answered.
        version: Version of the model.
        predictions: For each image, in order, its most probable classes, best first; or for each row its outputs by
            name.
        timings: Durations inside of the server, in milliseconds.
        batch_rows: Number of rows in the batch that these were part of.
    """

    model: str
    version: str
    predictions: list[Any]
    timings: dict[str, float]
    batch_rows: int | None = None


class AsyncPredictClient:
    """A connection to a server; use it in an `async with` statement. Tasks may share it.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`; `http://` may be left out.
        timeout_s: Seconds for one call, including all attempts and pauses; sent to the server as its deadline.
        attempts: Maximum attempts of a request while the server answers 429 or 503.
        headers: Headers of every request, e.g. `{"Authorization": "Bearer ..."}`.
        transport: Replaces the network, for tests.

    Raises:
        UsageError: If the address is invalid.
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
            # A proxy of the environment could not reach the loopback address.
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
            top_k: Number of classes for each image.
            model: Name of the model, if several are served.

        Raises:
            DataError: If a file cannot be read, or the server cannot be reached or does not answer in time.
            ImageError: If the server cannot decode an image; `ImageTooLargeError` if one, or all, are too large for it.
            UsageError: If there is no such model.
            CptError: If the server refuses or fails otherwise, or is not a `cpt serve`.
        """
        query = {"top_k": top_k} if model is None else {"top_k": top_k, "model": model}
        body = {"params": query, "files": [("file", _part(index, image)) for index, image in enumerate(images)]}
        return await self._predict(body, _IMAGE_ERRORS)

    async def predict_rows(self, rows: Mapping[str, Any], *, top_k: int = 1, model: str | None = None) -> Answer:
        """Ask for the predictions of rows.

        Args:
            rows: JSON of the request, `{"inputs": {name: [row, ...]}}` or `{"instances": [{name: row}, ...]}`.
            top_k: Number of classes for each row, of a classifier.
            model: Name of the model, if several are served.

        Raises:
            DataError: If the server cannot be reached or does not answer in time.
            UsageError: If there is no such model, or it does not take these rows.
            CptError: If the server refuses or fails otherwise, or is not a `cpt serve`.
        """
        query = {"top_k": top_k} if model is None else {"top_k": top_k, "model": model}
        return await self._predict({"params": query, "json": rows}, _TEXT_ERRORS)

    async def _predict(self, body: Mapping[str, Any], kinds: Mapping[int, type[CptError]]) -> Answer:
        response = await self._ask("/predict", body, kinds=kinds)
        try:
            content = response.json()
            predictions = [
                row if isinstance(row, dict) else [Prediction(**entry) for entry in row]
                for row in content["predictions"]
            ]
            model, version, timings = content["model"], content["version"], content["timings"]
            return Answer(model, version, predictions, timings, content.get("batch_rows"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = shown_address(self._url)
            raise CptError(f"Expected a prediction from {where}, but got another answer: {error}") from error

    async def generate(
        self, prompt: str, *, model: str | None = None, **parameters: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of `/generate`: each holds new text, and the last one the reason for the end.

        Closing the iterator ends the generation. `timeout_s` applies to the first event and then to each further one.

        Args:
            prompt: Text to continue.
            model: Name of the model, if several are served.
            parameters: Further parameters of `/generate`, such as `max_tokens`.

        Raises:
            UsageError: If the server rejects the request as invalid.
            DataError: If the server cannot be reached or closes the connection early.
            CptError: If it refuses or fails otherwise.
        """
        query = {} if model is None else {"model": model}
        body = {"params": query, "json": {**parameters, "prompt": prompt, "stream": True}}
        response = await self._ask("/generate", body, kinds=_TEXT_ERRORS, stream=True)
        finished = False
        try:
            async for line in _lines(response.aiter_bytes()):
                if line.startswith(b"data: "):
                    event = _event(line.removeprefix(b"data: "))
                    finished = "finish_reason" in event
                    yield event
        except httpx2.HTTPError as error:
            raise unreachable(self._url, error) from error
        finally:
            await response.aclose()
        if not finished:
            raise DataError("Expected the end of the text, but the server broke off")


class PredictClient:
    """The blocking client, which threads may share; use it in a `with` statement.

    Args:
        url: Address of the server.
        options: Further arguments of `AsyncPredictClient`.

    Raises:
        UsageError: If the address is invalid.
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
        """Ask for the classes of image files; see `AsyncPredictClient.predict`."""
        return self._portal.call(lambda: self._client.predict(images, top_k=top_k, model=model))

    def predict_rows(self, rows: Mapping[str, Any], *, top_k: int = 1, model: str | None = None) -> Answer:
        """Ask for the predictions of rows; see `AsyncPredictClient.predict_rows`."""
        return self._portal.call(lambda: self._client.predict_rows(rows, top_k=top_k, model=model))

    def generate(self, prompt: str, *, model: str | None = None, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield the events of a text; see `AsyncPredictClient.generate`."""
        events = self._client.generate(prompt, model=model, **parameters)
        while (event := self._portal.call(lambda: anext(events, None))) is not None:
            try:
                yield event
            except GeneratorExit:
                self._portal.call(events.aclose)
                raise


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines of a body; texts in them may contain Unicode's other line ends, so bytes are split."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _event(content: bytes) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise DataError(f"Expected events of JSON, but got {content.decode(errors='replace')!r:.100}") from error
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
