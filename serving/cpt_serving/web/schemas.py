"""The shapes of requests and answers, as `/docs` shows them."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorAnswer(BaseModel):
    """What every error looks like."""

    error: str
    request_id: str


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of the errors that a route answers."""
    return {status: {"model": ErrorAnswer} for status in statuses}


class ClassProbability(BaseModel):
    """One class of an image's prediction."""

    label: str
    index: int
    probability: float


class Timings(BaseModel):
    """Where a request's time went, in milliseconds."""

    preprocess_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


class PredictAnswer(BaseModel):
    """Predictions of `/predict`: for each image, in order, its most probable classes, best first."""

    model: str
    version: str
    predictions: list[list[ClassProbability]]
    timings: Timings
    batch_rows: int
    """Images of the batch that this request's were computed in."""


class ServedModel(BaseModel):
    """A model and its versions, the newest last."""

    name: str
    versions: list[str]
    kind: Literal["image", "text"] | None
    """What it takes: `/predict` answers for images, `/generate` and `/score` for text; null if it is not loaded."""


class ServedModels(BaseModel):
    """All models of the server."""

    models: list[ServedModel]


class Liveness(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class Readiness(BaseModel):
    """Traffic may come."""

    live: Literal[True] = True
    ready: Literal[True] = True
    detail: str | None = None
    """What an operator should look at, although the server answers."""
