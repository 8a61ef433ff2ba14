"""The client that waits for its answers."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import numpy.typing as npt

from cpt_serving.client import calls
from cpt_serving.client.addresses import is_loopback, normalize_address
from cpt_serving.client.answers import Answer, InferAnswer, ModelMetadata
from cpt_serving.client.exchange import TIMEOUT_HEADER, Retries, Wait, exchange
from cpt_serving.client.models import only_model

T = TypeVar("T")

CONNECT_WITHIN_S = 10.0


class PredictClient:
    """A connection to a server; use it in a `with` statement. Threads may share it.

    Args:
        url: Address of the server, e.g. `http://127.0.0.1:8000`; `http://` may be left out.
        timeout_s: Seconds for one call, all its attempts and pauses together; the server hears of it.
        retries: How patient to be with a server that answers 429 or 503.
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
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._url = normalize_address(url)
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._generator = random.Random()
        self._metadata: dict[tuple[str | None, str | None], ModelMetadata] = {}
        self._client = httpx2.Client(
            base_url=self._url,
            headers=headers,
            # A proxy of the environment could not reach this machine's own address.
            trust_env=not is_loopback(self._url.host),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def predict(self, images: Sequence[Path | bytes], *, top_k: int = 1, model: str | None = None) -> Answer:
        """Ask for the classes of image files.

        Args:
            images: Paths of image files, or their content; one or more.
            top_k: How many classes each image gets.
            model: Which model, where several are served.

        Raises:
            DataError: If a file cannot be read, or the server cannot be reached or does not answer in time.
            ImageError: If the server cannot decode an image.
            ImageTooLargeError: If an image or the request is larger than the server allows.
            CptError: If the server refuses or fails, or is none of this project's.
        """
        return self._do(calls.predict_call(images, top_k=top_k, model=model))

    def infer(self, rows: npt.NDArray[Any], *, model: str | None = None, version: str | None = None) -> InferAnswer:
        """Ask for the outputs of rows, by the Open Inference Protocol with tensors as bytes.

        Args:
            rows: The model's input (N, ...), e.g. normalised images, float32 (N, C, H, W).
            model: Which model; by default the only one that is served.
            version: Its version; by default the newest.

        Raises:
            UsageError: If the server does not take such rows, or serves several models and none is named.
            DataError: If the server cannot be reached or does not answer in time.
            CptError: If the server refuses or fails.
        """
        return self._do(calls.infer_call(self._known(model, version), version, rows))

    def metadata(self, model: str | None = None, version: str | None = None) -> ModelMetadata:
        """Ask what a model takes and returns.

        Args:
            model: Which model; by default the only one that is served.
            version: Its version; by default the newest.

        Raises:
            UsageError: If there is no such model, or the server serves several and none is named.
            DataError: If the server cannot be reached or does not answer in time.
        """
        name = only_model(self._do(calls.names_call()), self._url) if model is None else model
        return self._do(calls.metadata_call(name, version))

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Ask whether the server, or one of its models, can be asked.

        Raises:
            DataError: If the server cannot be reached or does not answer in time.
        """
        return self._do(calls.ready_call(model, version))

    def _known(self, model: str | None, version: str | None) -> ModelMetadata:
        key = (model, version)
        if key not in self._metadata:
            self._metadata[key] = self.metadata(model, version)
        return self._metadata[key]

    def _do(self, call: calls.Call[T]) -> T:
        steps = exchange(
            call,
            self._url,
            timeout_s=self._timeout_s,
            retries=self._retries,
            clock=time.monotonic,
            generator=self._generator,
        )
        outcome: httpx2.Response | httpx2.HTTPError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Wait):
                time.sleep(step.seconds)
                outcome = None
            else:
                outcome = self._send(call, step.timeout_s)

    def _send(self, call: calls.Call[T], timeout_s: float) -> httpx2.Response | httpx2.HTTPError:
        try:
            return self._client.request(
                call.method,
                call.path,
                headers={**call.headers, TIMEOUT_HEADER: f"{timeout_s * 1e3:.0f}"},
                timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_WITHIN_S)),
                **call.body,
            )
        except httpx2.HTTPError as error:
            return error
