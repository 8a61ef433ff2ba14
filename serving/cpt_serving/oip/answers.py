"""Answers to requests for inference: logits or classes, in JSON or as bytes behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime import OUTPUT_NAME
from cpt_serving.oip.datatypes import BYTES, to_binary
from cpt_serving.oip.inputs import NATIVE
from cpt_serving.oip.requests import InferRequest, RequestedOutput


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """What answers a request.

    Args:
        datatype: FP32 for logits, BYTES for classes.
        values: float32 (N, K) or `bytes` objects (N, classes).
    """

    datatype: str
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer.

    Args:
        body: JSON, and the bytes of the output where the client wanted them.
        json_bytes: How much of it is JSON; `None` means that all is.
    """

    body: bytes
    json_bytes: int | None


def output_tensor(logits: npt.NDArray[np.float32], wanted: RequestedOutput, labels: Sequence[str]) -> OutputTensor:
    """Return what the client wants to know of the logits, float32 (N, K)."""
    if wanted.classes:
        return OutputTensor(BYTES, classify(logits, labels, wanted.classes))
    return OutputTensor(NATIVE, logits)


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


def render_answer(request: InferRequest, bundle: Bundle, logits: npt.NDArray[np.float32]) -> Answer:
    """Return the answer to a request; its id comes back if it has one."""
    output = output_tensor(logits, request.output, bundle.labels)
    described: dict[str, Any] = {
        "name": OUTPUT_NAME, "datatype": output.datatype, "shape": list(output.values.shape),
    }  # fmt: skip
    answer: dict[str, Any] = {"model_name": bundle.name, "model_version": bundle.version}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [described]
    if request.output.binary:
        data = to_binary(output.datatype, output.values)
        described["parameters"] = {"binary_data_size": len(data)}
        header = orjson.dumps(answer)
        return Answer(header + data, len(header))
    if output.datatype == BYTES:
        described["data"] = [text.decode() for text in output.values.ravel()]
    else:
        described["data"] = np.ascontiguousarray(output.values).reshape(-1)
    return Answer(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), None)
