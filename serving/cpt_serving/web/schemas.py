"""Schemas of answers, as `/docs` shows them."""

from typing import Any, Literal

from pydantic import BaseModel

from cpt_deploy.bundle import Prediction

BODY_ERRORS = (400, 408, 413, 415, 503)
"""Statuses of requests whose body cannot be read."""


class ErrorAnswer(BaseModel):
    """The answer to every error."""

    error: str
    request_id: str


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the errors that a route answers."""
    return {status: {"model": ErrorAnswer} for status in sorted(set(statuses))}


class Timings(BaseModel):
    """Durations of the parts of a request, in milliseconds."""

    preprocess_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


class PredictAnswer(BaseModel):
    """Predictions of `/predict`, one for each row: outputs by name, or an image's most probable classes, best first."""

    model: str
    version: str
    predictions: list[list[Prediction] | dict[str, Any]]
    timings: Timings
    batch_rows: int
    """Number of rows in the batch that this request was part of."""


class ServedModel(BaseModel):
    """A model and its versions, the newest last."""

    name: str
    versions: list[str]
    form: str | None
    """Form of the page for its requests: tensors, image or text; null if the model is not loaded."""


class ServedModels(BaseModel):
    """All models of the server."""

    models: list[ServedModel]


class Liveness(BaseModel):
    """Answer of liveness."""

    live: Literal[True] = True


class Readiness(BaseModel):
    """Answer of readiness."""

    live: Literal[True] = True
    ready: Literal[True] = True
    detail: str | None = None
    """A problem that an operator should look at although the server answers."""
