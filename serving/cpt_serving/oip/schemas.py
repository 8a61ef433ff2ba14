"""Schemas of the protocol's requests and answers, for validation and for `/docs`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model without references, so that it can be used anywhere in an OpenAPI file."""
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
    """Name and version of the server, and its extensions."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str] | None = Field(default=None, description="further facts, of models without evidence")


class ModelReadiness(BaseModel):
    """Answer to whether a model is ready."""

    name: str
    ready: Literal[True] = True


Count = Annotated[int, Field(ge=0)]


class Parameters(BaseModel):
    """Parameters of a request or of one of its tensors; unknown ones are ignored."""

    model_config = ConfigDict(strict=True)

    shared_memory_region: SkipJsonSchema[None] = None
    """Not supported: tensors are sent in the request and the answer."""


class InputParameters(Parameters):
    """Parameters of an input."""

    binary_data_size: Count | None = Field(default=None, description="number of bytes after the JSON that belong to it")


class OutputParameters(Parameters):
    """Parameters of an output."""

    binary_data: bool | None = Field(default=None, description="send it as bytes after the JSON")
    classification: Count = Field(default=0, description="number of labelled classes to return instead")


class InferParameters(Parameters):
    """Parameters of a request for inference."""

    timeout: Count | None = Field(default=None, description="microseconds; 0 means none")
    binary_data_output: bool = Field(default=False, description="send outputs as bytes after the JSON")


class InferInput(BaseModel):
    """A tensor with its data, flat or nested, in row-major order."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: Annotated[list[Count], Field(fail_fast=True)]
    datatype: str
    data: Any = None
    parameters: InputParameters | None = None

    @property
    def raw(self) -> memoryview | None:
        """Bytes of the tensor, if it was sent in binary; JSON has no such values."""
        return self.data if isinstance(self.data, memoryview) else None

    def attach(self, raw: memoryview) -> Self:
        """Attach the tensor's bytes, and return the tensor."""
        self.data = raw
        return self


class RequestedOutput(BaseModel):
    """An output that the client asks for."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: OutputParameters | None = None

    def as_bytes(self, otherwise: bool) -> bool:
        """Return whether to send the output in binary; `otherwise` is the default of the request."""
        wanted = None if self.parameters is None else self.parameters.binary_data
        return otherwise if wanted is None else wanted


class InferRequest(BaseModel):
    """A request for inference."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    inputs: Annotated[list[InferInput], Field(fail_fast=True)]
    outputs: Annotated[list[RequestedOutput], Field(fail_fast=True)] | None = None
    parameters: InferParameters | None = None

    @property
    def binary(self) -> bool:
        """Whether outputs are sent in binary by default."""
        return self.parameters is not None and self.parameters.binary_data_output

    @property
    def timeout_us(self) -> int:
        """Timeout in microseconds; 0 means none."""
        return (self.parameters.timeout or 0) if self.parameters else 0


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
    """A request for the repository's index."""

    model_config = ConfigDict(strict=True)

    ready: bool = Field(default=False, description="only versions that are ready")


class RepositoryParameters(BaseModel):
    """Version to load or unload; all versions by default."""

    model_config = ConfigDict(strict=True)

    version: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_overrides(cls, given: Any) -> Any:
        """Raise an error for a configuration or files of the request: a bundle's own are covered by its checksums."""
        if isinstance(given, dict) and any(name.startswith(("config", "file:")) for name in given):
            raise ValueError("the model is loaded as it is there, without a configuration and files of the request")
        return given


class RepositoryChange(BaseModel):
    """A request to load or unload a model."""

    model_config = ConfigDict(strict=True)

    parameters: RepositoryParameters | None = None


class StatisticDuration(BaseModel):
    """A count, and a total duration in nanoseconds."""

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
    """A tensor, without the batch dimension."""

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
