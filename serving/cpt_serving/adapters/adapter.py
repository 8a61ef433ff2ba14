"""The interface in which kinds of models differ: one adapter per kind, in a file of its own.

An adapter declares the inputs and outputs of its model, converts requests to tensors (`decode`) and tensors to answers
(`encode`), and runs the model. Abilities beyond inference are classes that it inherits from: `Predicts` for files in
and labelled predictions out, `Generates` for texts. Routes ask for an ability, never for a kind.
"""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

from cpt_deploy.bundle import Bundle, read_evidence, require_evidence
from cpt_deploy.bundle.integrity.signatures import public_keys, require_signature
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_deploy.errors import BundleError
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Model, Tensors, TextModel
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.schemas import InferRequest, ModelMetadata, TensorMetadata
from cpt_serving.oip.tensors import DeclaredTensor
from cpt_serving.samples import Samples
from cpt_serving.settings import ServeSettings
from cpt_serving.web.uploads import Upload

logger = logging.getLogger(__name__)

ModelKind = Literal["image", "text"]
"""The kind of input of a model, by which the page chooses its form."""


class Adapter(Model):
    """One version of a model of any kind.

    Args:
        bundle: Bundle of the model.
        settings: Threads, provider, checks and limits.
        memory: Memory for decoding.
    """

    kind: ClassVar[ModelKind]
    """Kind of its input, for the page."""

    ability: ClassVar[str] = "answers /v2/models/{name}/infer"
    """Description of its ability, for errors of requests that need another."""

    inputs: Sequence[DeclaredTensor]
    """Inputs of the model."""

    outputs: Sequence[DeclaredTensor]
    """Outputs of the model."""

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        self.bundle = bundle
        self.settings = settings
        self.memory = memory

    def batch_key(self, inputs: Tensors) -> Hashable:
        """Return a key that requests must share to be computed together."""
        return None

    def largest_batch(self, inputs: Tensors) -> int:
        """Return how many rows like these may be in one batch."""
        return self.settings.max_batch

    def declared_rows(self, request: InferRequest) -> int:
        """Return the number of rows that a request declares, at least 1; `decode` verifies it."""
        rows = 1
        for tensor in request.inputs:
            if tensor.shape and tensor.shape[0] > rows:
                rows = tensor.shape[0]
        return rows if rows == 1 else min(rows, self.settings.max_rows)

    def is_light(self, request: InferRequest) -> bool:
        """Return whether `decode` takes no longer than handing work to a thread.

        Args:
            request: A request whose JSON is short.
        """
        return False

    @abstractmethod
    def decode(self, request: InferRequest, work: Work) -> Tensors:
        """Return the inputs in a request of the Open Inference Protocol; call it in a thread unless it `is_light`.

        Raises:
            RequestError: 400 or 413, with the expectation.
            AbandonedError: If nobody waits for the inputs any more.
        """

    @abstractmethod
    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """Return the outputs that the client requested, in the requested form."""

    def metadata(self, versions: Sequence[str]) -> ModelMetadata:
        """Return the protocol's metadata of the model.

        Args:
            versions: Versions that are served.
        """
        inputs, outputs = (
            [TensorMetadata(name=each.name, datatype=each.datatype, shape=each.dims) for each in tensors]
            for tensors in (self.inputs, self.outputs)
        )
        return ModelMetadata(
            name=self.bundle.name, versions=list(versions), platform="onnx_onnxv1", inputs=inputs, outputs=outputs
        )

    def config(self) -> dict[str, Any]:
        """Return the configuration in Triton's form; batch size 0 means that shapes include the batch dimension."""
        bundle, on_cpu = self.bundle, provider_name(self.settings.provider) == CPU
        group = {
            "name": bundle.name,
            "kind": "KIND_CPU" if on_cpu else "KIND_GPU",
            "count": self.settings.inferences_at_once,
        }
        tensors = {
            part: [{"name": each.name, "data_type": f"TYPE_{each.datatype}", "dims": each.dims} for each in declared]
            for part, declared in (("input", self.inputs), ("output", self.outputs))
        }
        return {
            "name": bundle.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 0,
            **tensors,
            "instance_group": [group],
            "default_model_filename": bundle.onnx_path.name,
            "parameters": {
                "sha256": {"string_value": bundle.sha256},
                "version": {"string_value": bundle.version},
            },
        }

    def infer_example(self) -> dict[str, Any] | None:
        """Return an example request for inference that works unchanged; `None` if it would be too long to show."""
        return None

    def evidence(self) -> dict[str, Any]:
        """Return the facts of the model beyond those of every bundle, by fields of `Evidence`."""
        return {}

    def verified_onnx(self) -> bytes:
        """Return the bytes of model.onnx whose checksum was verified; the file itself could be replaced after that.

        Raises:
            BundleError: If the file was replaced or cannot be read.
            ValidationFailedError: If a signature or evidence is required and missing or invalid.
        """
        bundle = self.bundle
        _require_trust(bundle, self.settings)
        try:
            content = bundle.onnx_path.read_bytes()
        except OSError as error:
            raise BundleError(f"Expected to read {bundle.onnx_path}, but got: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != bundle.sha256:
            raise BundleError(
                f"Expected {bundle.onnx_path} as it was when its checksum was verified, but it has changed"
            )
        return content


def _require_trust(bundle: Bundle, settings: ServeSettings) -> None:
    """Raise an error unless a bundle has the required signature and evidence; warn if its evidence is outdated.

    Raises:
        ValidationFailedError: If the signature or the evidence is missing or invalid.
        DataError: If a public key cannot be used.
    """
    if settings.require_signature is not None:
        require_signature(bundle, public_keys(settings.require_signature))
    if settings.require_evidence:
        require_evidence(bundle, settings.provider)
        return
    try:
        evidence = read_evidence(bundle)
    except BundleError as error:
        logger.warning("%s", error.message)
        return
    if evidence is not None and evidence.content_sha256 != bundle.content_sha256:
        logger.warning(
            "a file of %s was changed after its validation: its evidence is outdated (cpt validate)", bundle.path
        )


class Predicts(Adapter):
    """A model that takes files and answers with labelled predictions: `/predict`."""

    ability = "answers /predict"

    @abstractmethod
    def read(self, uploads: Sequence[Upload], work: Work) -> Tensors:
        """Return the model's inputs from uploads, in order; call it in a thread.

        Raises:
            RequestError: 400 or 413; the message names the upload.
            AbandonedError: If nobody waits for the inputs any more.
        """

    @abstractmethod
    def predictions(self, outputs: Tensors, top_k: int) -> Sequence[Any]:
        """Return the prediction for each row of the outputs, as JSON types or dataclasses of them."""

    @abstractmethod
    def samples(self) -> Samples:
        """Return the golden inputs as the page shows them."""

    @abstractmethod
    def sample_png(self, index: int) -> bytes:
        """Return a golden input as a PNG file.

        Raises:
            IndexError: If there is no input of this number.
        """


class Generates(Adapter, TextModel):
    """A model that continues and scores texts: `/generate` and `/score`."""

    ability = "answers /generate and /score"

    @abstractmethod
    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a client's text; slow for long texts.

        Raises:
            RequestError: 400 if it is longer than the limit or the context.
        """
