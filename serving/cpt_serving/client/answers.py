"""What servers answer, and which error a refusal is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy.typing as npt

from cpt_deploy.bundle import Prediction
from cpt_deploy.errors import CptError, DataError, ImageError, ImageTooLargeError, UsageError
from cpt_serving.client.tensors import HEADER_LENGTH, decode_answer

PREDICT_ERRORS: Mapping[int, type[CptError]] = {400: ImageError, 413: ImageTooLargeError, 415: ImageError}
INFER_ERRORS: Mapping[int, type[CptError]] = {400: UsageError, 404: UsageError, 413: UsageError}


@dataclass(frozen=True)
class Answer:
    """What a server says of some images.

    Args:
        model: Name of the model that answered.
        version: Its version.
        predictions: For each image, in order, its most probable classes, best first.
        timings: Where the server's time went, in milliseconds.
        batch_rows: Images of the batch that these were computed in; `None` if the server does not say.
    """

    model: str
    version: str
    predictions: list[list[Prediction]]
    timings: dict[str, float]
    batch_rows: int | None = None


@dataclass(frozen=True)
class InferAnswer:
    """What a model computed.

    Args:
        model: Name of the model that answered.
        version: Its version, if it has one.
        outputs: Its outputs by name, each with a row for each row that was asked.
    """

    model: str
    version: str | None
    outputs: dict[str, npt.NDArray[Any]]

    @property
    def logits(self) -> npt.NDArray[Any]:
        """The only output.

        Raises:
            ValueError: If there are others.
        """
        if len(self.outputs) != 1:
            raise ValueError(f"Expected a model with one output, but got {sorted(self.outputs)}")
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output of a model; -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a model takes and returns.

    Args:
        name: Its name.
        versions: Its versions; empty if the server does not say.
        platform: What it is, e.g. `onnx_onnxv1`.
        inputs: Its inputs.
        outputs: Its outputs.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def parse_predictions(response: httpx2.Response) -> Answer:
    """Return the answer of `/predict`."""
    content: dict[str, Any] = response.json()
    return Answer(
        model=content["model"],
        version=content["version"],
        predictions=[[Prediction(**entry) for entry in image] for image in content["predictions"]],
        timings=content["timings"],
        batch_rows=content.get("batch_rows"),
    )


def parse_inference(response: httpx2.Response) -> InferAnswer:
    """Return the answer to an inference."""
    head, outputs = decode_answer(response.content, response.headers.get(HEADER_LENGTH))
    return InferAnswer(head["model_name"], head.get("model_version"), outputs)


def parse_metadata(response: httpx2.Response) -> ModelMetadata:
    """Return a model's metadata."""
    content: dict[str, Any] = response.json()
    inputs, outputs = (
        tuple(TensorMetadata(each["name"], each["datatype"], tuple(each["shape"])) for each in content[key])
        for key in ("inputs", "outputs")
    )
    return ModelMetadata(content["name"], tuple(content.get("versions") or ()), content["platform"], inputs, outputs)


def parse_names(response: httpx2.Response) -> list[str]:
    """Return the names of the models in a repository, each once."""
    return sorted({str(entry["name"]) for entry in response.json()})


def refusal(url: httpx2.URL, response: httpx2.Response, kinds: Mapping[int, type[CptError]]) -> CptError:
    """Return the error that an answer stands for.

    Args:
        url: The server's address.
        response: Its answer.
        kinds: The errors of statuses that have one of their own; 504 is a `DataError`, others are a `CptError`.
    """
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return CptError(
            f"Expected a prediction from {url}, but got status {response.status_code}",
            hint="is it a server of `cpt serve`?",
        )
    known: dict[int, type[CptError]] = {504: DataError, **kinds}
    return known.get(response.status_code, CptError)(f"{url} answered {response.status_code}: {message}")
