"""The shapes of the protocol's requests and answers, as `/docs` shows them; requests are parsed without them."""

from typing import Any, Literal

from pydantic import BaseModel, Field


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model without references, as it can stand anywhere in an OpenAPI file."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        return {key: inline(value) for key, value in node.items()}

    inlined: dict[str, Any] = inline(schema)
    return inlined


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


class InferInput(BaseModel):
    """A tensor with its data, flat or nested, in row-major order."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class RequestedOutput(BaseModel):
    """An output that the client asks for; its parameters are `binary_data` and `classification`."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """A request for inference; its parameters are `timeout` (microseconds) and `binary_data_output`."""

    id: str | None = None
    inputs: list[InferInput]
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] | None = None


class InferOutput(BaseModel):
    """Logits, or classes as `value:index:label`."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferAnswer(BaseModel):
    """An answer to a request for inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]


class RepositoryIndexRequest(BaseModel):
    """What to list."""

    ready: bool = False


class RepositoryModel(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryParameters(BaseModel):
    """Which version; all without."""

    version: str | None = None


class RepositoryChange(BaseModel):
    """How to load or unload a model."""

    parameters: RepositoryParameters | None = None


class StatisticDuration(BaseModel):
    """How often, and the nanoseconds altogether."""

    count: int = 0
    ns: int = 0


class InferStatistics(BaseModel):
    """Durations of requests and of their parts."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration = StatisticDuration()
    cache_miss: StatisticDuration = StatisticDuration()


class ModelStatistics(BaseModel):
    """Statistics of one version of a model."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970")
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics


class StatisticsAnswer(BaseModel):
    """Statistics of models."""

    model_stats: list[ModelStatistics]


class TensorConfig(BaseModel):
    """A tensor, without the number of rows."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(BaseModel):
    """A model's configuration in Triton's form."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
