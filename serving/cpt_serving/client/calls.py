"""Requests as values: what to send and how to read the answer, for the blocking and the asynchronous client alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
import numpy.typing as npt

from cpt_deploy.errors import CptError, DataError
from cpt_serving.client.answers import (
    INFER_ERRORS,
    PREDICT_ERRORS,
    Answer,
    InferAnswer,
    ModelMetadata,
    parse_inference,
    parse_metadata,
    parse_names,
    parse_predictions,
)
from cpt_serving.client.tensors import encode_request

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Args:
        method: Its HTTP method.
        path: Its path, relative to the server's address.
        parse: Reads a good answer; raises `ValueError`, `KeyError` or `TypeError` for one of another form.
        body: What `httpx2` takes as a request's body and query.
        headers: Its headers.
        kinds: The errors that refusals are.
        accepted: Statuses that `parse` reads.
        patient: Whether to try again when the server is busy.
    """

    method: str
    path: str
    parse: Callable[[httpx2.Response], T]
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[int, type[CptError]] = field(default_factory=dict)
    accepted: frozenset[int] = frozenset({200})
    patient: bool = True


def predict_call(images: Sequence[Path | bytes], *, top_k: int, model: str | None) -> Call[Answer]:
    """Ask for the classes of image files, given by path or content.

    Raises:
        DataError: If a file cannot be read.
    """
    query = {"top_k": top_k} if model is None else {"top_k": top_k, "model": model}
    files = [("file", _part(index, image)) for index, image in enumerate(images)]
    return Call("POST", "/predict", parse_predictions, {"params": query, "files": files}, kinds=PREDICT_ERRORS)


def infer_call(metadata: ModelMetadata, version: str | None, rows: npt.NDArray[Any]) -> Call[InferAnswer]:
    """Ask for the outputs of a model with one input, tensors as bytes.

    Raises:
        ValueError: If the protocol has no name for the type of the rows.
    """
    body, headers = encode_request(metadata.inputs[0].name, rows)
    path = f"{_model_path(metadata.name, version)}/infer"
    return Call("POST", path, parse_inference, {"content": body}, headers, kinds=INFER_ERRORS)


def metadata_call(model: str, version: str | None) -> Call[ModelMetadata]:
    """Ask what a model takes and returns."""
    return Call("GET", _model_path(model, version), parse_metadata, kinds=INFER_ERRORS)


def names_call() -> Call[list[str]]:
    """Ask for the names of the models."""
    return Call("POST", "/v2/repository/index", parse_names, {"content": b"{}"})


def ready_call(model: str | None, version: str | None) -> Call[bool]:
    """Ask whether the server, or a model, can be asked."""
    path = "/v2/health/ready" if model is None else f"{_model_path(model, version)}/ready"
    # Triton answers a model that is not ready with 400, KServe and this project with 503.
    accepted = frozenset({200, 503} if model is None else {200, 400, 503})
    return Call("GET", path, lambda response: response.status_code == 200, accepted=accepted, patient=False)


def _model_path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _part(index: int, image: Path | bytes) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        return f"image-{index + 1}", image
    try:
        return image.name, image.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a readable image file at {image}, but got: {error.strerror or error}") from error
