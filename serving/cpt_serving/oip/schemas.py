"""The shapes of the protocol's requests and answers, as they are checked and as `/docs` shows them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema


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


Count = Annotated[int, Field(ge=0)]


class Parameters(BaseModel):
    """Parameters of a request or of one of its tensors; unknown ones change nothing."""

    model_config = ConfigDict(strict=True)

    shared_memory_region: SkipJsonSchema[None] = None
    """Not offered: tensors stand in the request and the answer."""


class InputParameters(Parameters):
    """Parameters of an input."""

    binary_data_size: Count | None = Field(default=None, description="how many of the bytes behind the JSON it takes")


class OutputParameters(Parameters):
    """Parameters of an output."""

    binary_data: bool | None = Field(default=None, description="as bytes behind the JSON")
    classification: Count = Field(default=0, description="the labels of as many classes instead of the numbers")


class InferParameters(Parameters):
    """Parameters of a request for inference."""

    timeout: Count | None = Field(default=None, description="microseconds; 0 states none")
    binary_data_output: bool = Field(default=False, description="outputs as bytes behind the JSON")


class InferInput(BaseModel):
    """A tensor with its data, flat or nested, in row-major order."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: Annotated[list[Count], Field(fail_fast=True)]
    datatype: str
    data: Any = None
    parameters: InputParameters | None = None
    _raw: memoryview | None = None

    @property
    def raw(self) -> memoryview | None:
        """Its bytes, if it came as bytes."""
        return self._raw

    def attach(self, raw: memoryview) -> Self:
        """Take the bytes that came with it, and return the tensor."""
        self._raw = raw
        return self


class RequestedOutput(BaseModel):
    """An output that the client asks for."""

    model_config = ConfigDict(strict=True)

    name: str
    parameters: OutputParameters | None = None

    def as_bytes(self, otherwise: bool) -> bool:
        """Return whether the client wants it as bytes; `otherwise` holds if it does not say."""
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
        """Whether outputs are wanted as bytes that do not say it themselves."""
        return self.parameters is not None and self.parameters.binary_data_output

    @property
    def timeout_us(self) -> int:
        """Microseconds within which the answer is worth having; 0 states none."""
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
    """What to list."""

    model_config = ConfigDict(strict=True)

    ready: bool = Field(default=False, description="only what is ready")


class RepositoryModel(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryParameters(BaseModel):
    """Which version; all without."""

    model_config = ConfigDict(strict=True)

    version: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_overrides(cls, given: Any) -> Any:
        """Raise for a configuration or files: a bundle's are covered by its checksums."""
        if isinstance(given, dict) and any(name.startswith(("config", "file:")) for name in given):
            raise ValueError("the model is loaded as it is there, without a configuration and files of the request")
        return given


class RepositoryChange(BaseModel):
    """How to load or unload a model."""

    model_config = ConfigDict(strict=True)

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
