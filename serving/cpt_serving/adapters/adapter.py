"""What differs between kinds of models, and only that: one adapter a kind, one file each.

An adapter says what its model takes and gives, makes tensors of a request (`decode`) and an answer of tensors
(`encode`), and runs the model. What it can besides inference is a class of its own that it inherits from: `Predicts`
for images or the like in and labelled predictions out, `Generates` for texts. Routes ask for those, never for a kind.
"""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

from cpt_deploy.bundle import read_evidence, require_evidence
from cpt_deploy.bundle.integrity.signatures import public_keys, require_signature
from cpt_deploy.bundle.opened import OpenedBundle
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
"""What a model takes, as the page tells its forms apart."""


class Adapter(Model):
    """One model version of some kind.

    Args:
        bundle: The bundle of the model.
        settings: Threads, provider, checks and limits.
        memory: What decoding may take at once.
    """

    kind: ClassVar[ModelKind]
    """What it takes, for the page."""

    ability: ClassVar[str] = "answers /v2/models/{name}/infer"
    """What it can, for those who ask it for something else."""

    inputs: Sequence[DeclaredTensor]
    """What the model takes."""

    outputs: Sequence[DeclaredTensor]
    """What it gives."""

    def __init__(self, bundle: OpenedBundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        self.bundle = bundle
        self.settings = settings
        self.memory = memory

    def batch_key(self, inputs: Tensors) -> Hashable:
        """Return what requests must have in common to be computed together."""
        return None

    def largest_batch(self, inputs: Tensors) -> int:
        """Return how many rows like these may be computed together."""
        return self.settings.max_batch

    def declared_rows(self, request: InferRequest) -> int:
        """Return how many rows a request says that it brings, at least 1; `decode` checks it."""
        rows = 1
        for tensor in request.inputs:
            if tensor.shape and tensor.shape[0] > rows:
                rows = tensor.shape[0]
        return rows if rows == 1 else min(rows, self.settings.max_rows)

    def is_light(self, request: InferRequest) -> bool:
        """Return whether `decode` takes no longer than it takes to hand work to a thread.

        Args:
            request: One whose JSON is short.
        """
        return False

    @abstractmethod
    def decode(self, request: InferRequest, work: Work) -> Tensors:
        """Return the inputs of a request by the Open Inference Protocol, in a thread unless it is light.

        Raises:
            RequestError: 400 or 413, with what was expected.
            AbandonedError: If nobody waits for them any more.
        """

    @abstractmethod
    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """Return what the client wants to know of the outputs, as it wants it."""

    def metadata(self, versions: Sequence[str]) -> ModelMetadata:
        """Return what the protocol tells of the model.

        Args:
            versions: Those that are served.
        """
        inputs, outputs = (
            [TensorMetadata(name=each.name, datatype=each.datatype, shape=each.dims) for each in tensors]
            for tensors in (self.inputs, self.outputs)
        )
        return ModelMetadata(
            name=self.bundle.name, versions=list(versions), platform="onnx_onnxv1", inputs=inputs, outputs=outputs
        )

    def config(self) -> dict[str, Any]:
        """Return the model's configuration in Triton's form; 0 as the batch size says that shapes are whole."""
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
        """Return a request for inference that works as it stands; `None` if it would be too long to show."""
        return None

    def evidence(self) -> dict[str, Any]:
        """Return what the page shows of the model beside what every bundle says, by fields of its `Evidence`."""
        return {}

    def verified_onnx(self) -> bytes:
        """Return the very bytes whose checksum holds: while a server runs, the file can be replaced after the check.

        Raises:
            BundleError: If it was, or cannot be read.
            ValidationFailedError: If a signature or evidence is required and does not hold.
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


def _require_trust(bundle: OpenedBundle, settings: ServeSettings) -> None:
    """Raise unless a bundle has the signature and the evidence that are asked for; warn if its evidence is outdated.

    Raises:
        ValidationFailedError: If it does not.
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
            "a file of %s was changed after its validation: its evidence is of others (cpt validate)", bundle.path
        )


class Predicts(Adapter):
    """A model to which people send files, and which answers with something that they can read: `/predict`."""

    ability = "answers /predict"

    @abstractmethod
    def read(self, uploads: Sequence[Upload], work: Work) -> Tensors:
        """Return the inputs of uploads, in their order; in a thread.

        Raises:
            RequestError: 400 or 413; the message names the upload.
            AbandonedError: If nobody waits for them any more.
        """

    @abstractmethod
    def predictions(self, outputs: Tensors, top_k: int) -> Sequence[Any]:
        """Return what the outputs mean, for each row, as JSON types or dataclasses of them."""

    @abstractmethod
    def samples(self) -> Samples:
        """Return the golden inputs as the page shows them."""

    @abstractmethod
    def sample_png(self, index: int) -> bytes:
        """Return a golden input as a PNG file.

        Raises:
            IndexError: If there are not that many.
        """


class Generates(Adapter, TextModel):
    """A model that goes on with texts: `/generate` and `/score`."""

    ability = "answers /generate and /score"

    @abstractmethod
    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a client's text; takes long for long ones.

        Raises:
            RequestError: 400 if it is longer than may be.
        """
