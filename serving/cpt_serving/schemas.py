"""The shapes of requests and answers, as `/docs` shows them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorAnswer(BaseModel):
    """What every error looks like."""

    error: str
    request_id: str


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


class ServerMetadata(BaseModel):
    """Who serves."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and returns."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReadiness(BaseModel):
    """A model can be asked."""

    name: str
    ready: Literal[True] = True


class InferTensor(BaseModel):
    """A tensor with its data, flat or nested, in row-major order."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class RequestedOutput(BaseModel):
    """An output that the client asks for."""

    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[InferTensor]
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferAnswer(BaseModel):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]
