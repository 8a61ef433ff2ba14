"""The protocol's inference for image classifiers: one tensor in, logits or classes out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.runtime import INPUT_NAME, OUTPUT_NAME
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import BYTES
from cpt_serving.oip.inputs import NATIVE
from cpt_serving.oip.requests import InferRequest, InputTensor, RequestedOutput
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown


@dataclass(frozen=True, slots=True)
class ClassifierRequest:
    """A request for the logits of images.

    Args:
        tensor: The input.
        output: How the answer shall be.
        id: Comes back in the answer, if there is one.
        timeout_us: Microseconds within which the answer is worth having; 0 states none.
    """

    tensor: InputTensor
    output: RequestedOutput
    id: str | None
    timeout_us: int


def classifier_request(request: InferRequest) -> ClassifierRequest:
    """Return what a request asks of a classifier.

    Raises:
        RequestError: 400, unless it has the one input that there is, and wants the one output or says nothing of it.
    """
    inputs = [tensor.name for tensor in request.inputs]
    if inputs != [INPUT_NAME]:
        raise bad_request(f"Expected exactly the input {INPUT_NAME!r}, but got {shown(inputs)}")
    outputs = [output.name for output in request.outputs]
    if outputs not in ([], [OUTPUT_NAME]):
        raise bad_request(f"Expected the output {OUTPUT_NAME!r} once, but got {shown(outputs)}")
    output = request.outputs[0] if outputs else RequestedOutput(OUTPUT_NAME, request.binary)
    return ClassifierRequest(request.inputs[0], output, request.id, request.timeout_us)


def classifier_output(wanted: RequestedOutput, logits: npt.NDArray[np.float32], labels: Sequence[str]) -> OutputTensor:
    """Return what the client wants to know of the logits.

    Args:
        wanted: As numbers, or as classes.
        logits: float32 (N, K).
        labels: The K names.
    """
    if wanted.classes:
        return OutputTensor(OUTPUT_NAME, BYTES, classify(logits, labels, wanted.classes), wanted.binary)
    return OutputTensor(OUTPUT_NAME, NATIVE, logits, wanted.binary)


def classify(logits: npt.NDArray[np.float32], labels: Sequence[str], classes: int) -> npt.NDArray[np.object_]:
    """Return each row's best classes as the classification extension writes them, `value:index:label` in UTF-8.

    Args:
        logits: float32 (N, K).
        labels: The K names.
        classes: How many; more than there are give all.

    Returns:
        `bytes` objects (N, classes), best first, of equal ones the first.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :classes]
    texts = np.empty(order.shape, object)
    for row, best in enumerate(order):
        # The text of a NumPy float32 is the shortest that reads back the same.
        texts[row] = [f"{logits[row, index]!s}:{index}:{labels[index]}".encode() for index in best]
    return texts
