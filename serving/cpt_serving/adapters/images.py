"""The adapter of image classification: images in, logits or labels out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, decode_image
from cpt_deploy.bundle.layout import LABELS_FILE
from cpt_deploy.bundle.processors.postprocessing import Prediction
from cpt_deploy.errors import ValidationFailedError
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME
from cpt_serving.adapters.adapter import Predicts
from cpt_serving.adapters.image_inputs import NATIVE, ImageReader, is_light
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors
from cpt_serving.inference.threads import Work
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import BYTES
from cpt_serving.oip.schemas import InferInput, InferRequest
from cpt_serving.oip.tensors import DeclaredTensor, wanted_outputs
from cpt_serving.samples import Samples, drawing_style, list_samples, sample_image, to_png
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown
from cpt_serving.web.uploads import Upload

_LARGEST_EXAMPLE = 1024
_EXAMPLE_SIDE = 32


class ImageClassification(Predicts):
    """One version of an image classifier."""

    kind = "image"

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        self.processor = bundle.expect_processor(ImageProcessor)
        shape = self.processor.preprocessing.input_shape
        self.inputs = [DeclaredTensor(INPUT_NAME, NATIVE, ("batch", *shape))]
        self.outputs = [DeclaredTensor(OUTPUT_NAME, NATIVE, ("batch", len(self.processor.labels)))]
        self.row_bytes = 4 * math.prod(shape)
        self._reader = ImageReader(self.processor.preprocessing, settings, memory)
        self._model: OnnxRuntimeModel | None = None

    def load(self) -> None:
        """See `Adapter`; compares the integers of the golden sample, or with golden=labels the top classes."""
        bundle, settings = self.bundle, self.settings
        model = OnnxRuntimeModel(
            self.verified_onnx(), bundle.signature, threads=settings.threads, provider=settings.provider
        )
        # Pillow loads its formats at the first image, which should not delay a client.
        model.run(self.processor.inputs([decode_image(self._example_png())]))
        if settings.golden != "off":
            check = model.reproduce_golden(bundle.golden)
            if not (check.reproduced or (settings.golden == "labels" and check.same_labels)):
                how_far = f"{check.worst_codes} codes" if check.tolerance is None else f"{check.worst:.3g}"
                raise ValidationFailedError(
                    f"Expected {bundle.name} to reproduce its golden sample, but {check.mismatches} of {check.values} "
                    f"{check.what} differ, by up to {how_far}, and the top classes "
                    f"{'agree' if check.same_labels else 'differ'}",
                    hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
                    "the setting golden=labels accepts it",
                )
        self._model = model

    def rows(self, inputs: Tensors) -> int:
        """See `Adapter`."""
        return len(inputs[INPUT_NAME])

    def run(self, requests: Sequence[Tensors]) -> Sequence[Tensors]:
        """See `Adapter`."""
        assert self._model is not None, "the engine asks only a model that is loaded"
        if len(requests) == 1:
            return [self._model.run(requests[0])]
        rows = np.concatenate([request[INPUT_NAME] for request in requests])
        logits = self._model.run({INPUT_NAME: rows})[OUTPUT_NAME]
        outputs, end = [], 0
        for request in requests:
            start, end = end, end + len(request[INPUT_NAME])
            outputs.append({OUTPUT_NAME: logits[start:end]})
        return outputs

    def is_light(self, request: InferRequest) -> bool:
        """See `Adapter`."""
        return is_light(self._tensor(request))

    def decode(self, request: InferRequest, work: Work) -> Tensors:
        """See `Adapter`; `ImageReader.read_tensor` describes the accepted tensors."""
        tensor = self._tensor(request)
        wanted_outputs(request, self.outputs)
        return {INPUT_NAME: self._reader.read_tensor(tensor, work)}

    def encode(self, request: InferRequest, outputs: Tensors) -> Sequence[OutputTensor]:
        """See `Adapter`."""
        (wanted,), logits = wanted_outputs(request, self.outputs), outputs[OUTPUT_NAME]
        if wanted.classes:
            texts = classify(logits, self.processor.labels, wanted.classes)
            return [OutputTensor(OUTPUT_NAME, BYTES, texts, wanted.binary)]
        return [OutputTensor(OUTPUT_NAME, NATIVE, logits, wanted.binary)]

    def config(self) -> dict[str, Any]:
        """See `Adapter`; shapes are without the batch dimension here."""
        config = super().config()
        ((given,), (made,)) = config["input"], config["output"]
        given |= {"format": "FORMAT_NCHW", "dims": given["dims"][1:]}
        made |= {"dims": made["dims"][1:], "label_filename": LABELS_FILE}
        return config | {"max_batch_size": self.settings.max_rows}

    def infer_example(self) -> dict[str, Any] | None:
        """See `Adapter`; a row of zeros, because `/docs` reveals nothing of a bundle's content."""
        shape = self.processor.preprocessing.input_shape
        if math.prod(shape) > _LARGEST_EXAMPLE:
            return None
        zeros = [0.0] * math.prod(shape)
        return {
            "id": "1", "inputs": [{"name": INPUT_NAME, "shape": [1, *shape], "datatype": NATIVE, "data": zeros}],
        }  # fmt: skip

    def evidence(self) -> dict[str, Any]:
        """See `Adapter`."""
        channels, height, width = self.processor.preprocessing.input_shape
        return {
            "input": {"channels": channels, "height": height, "width": width},
            "classes": len(self.processor.labels),
        }

    def read(self, uploads: Sequence[Upload], work: Work) -> Tensors:
        """See `Predicts`."""
        return {INPUT_NAME: self._reader.read(uploads, work)}

    def predictions(self, outputs: Tensors, count: int) -> list[list[Prediction]]:
        """See `Predicts`; the most probable classes of each image, best first."""
        return self.processor.answers(outputs, count)

    def samples(self) -> Samples:
        """See `Predicts`."""
        return Samples(list_samples(self.bundle), drawing_style(self.bundle))

    def sample_png(self, index: int) -> bytes:
        """See `Predicts`; the image has the size of the model's input."""
        return to_png(sample_image(self.bundle, index))

    def _example_png(self) -> bytes:
        image = sample_image(self.bundle, 0)
        image.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
        return to_png(image)

    def _tensor(self, request: InferRequest) -> InferInput:
        inputs = request.inputs
        if len(inputs) != 1 or inputs[0].name != INPUT_NAME:
            names = [tensor.name for tensor in inputs]
            raise bad_request(f"Expected exactly the input {INPUT_NAME!r}, but got {shown(names)}")
        return inputs[0]


def classify(logits: npt.NDArray[np.float32], labels: Sequence[str], classes: int) -> npt.NDArray[np.object_]:
    """Return each row's best classes in the form of the classification extension, `value:index:label` in UTF-8.

    Args:
        logits: float32 (N, K).
        labels: Names of the K classes.
        classes: Number of classes to return; all K if it is larger.

    Returns:
        `bytes` objects (N, classes), best first; ties in order of the index.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :classes]
    texts = np.empty(order.shape, object)
    for row, best in enumerate(order):
        # The text of a NumPy float32 is the shortest that reads back the same.
        texts[row] = [f"{logits[row, index]!s}:{index}:{labels[index]}".encode() for index in best]
    return texts
