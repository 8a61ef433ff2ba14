"""Answers to requests for inference, and their form over HTTP: JSON, with tensors in it or as bytes after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from cpt_deploy.bundle import Bundle
from cpt_serving.oip.datatypes import BYTES, to_binary
from cpt_serving.web.errors import bad_request


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output tensor of an answer.

    Args:
        name: Name of the output.
        datatype: Datatype of the protocol.
        values: An array of a matching type; `bytes` objects for BYTES.
        binary: Whether the client wants it as bytes.
    """

    name: str
    datatype: str
    values: npt.NDArray[Any]
    binary: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer.

    Args:
        body: JSON, followed by the bytes of outputs that the client requested in binary.
        json_bytes: Length of the JSON; `None` if all of the body is JSON.
    """

    body: bytes
    json_bytes: int | None


def classes_of(
    name: str, values: npt.NDArray[Any], labels: Sequence[str], classes: int, *, binary: bool
) -> OutputTensor:
    """Return each row's largest values in the form of the classification extension, `value:index:label` in UTF-8.

    Args:
        name: Name of the output.
        values: Numbers (N, K).
        labels: Names of the K classes; without one for each, `value:index`.
        classes: Number of classes to return, best first, ties in order of the index; all K if it is larger.
        binary: Whether the client wants them as bytes.

    Raises:
        RequestError: 400 if the output has another shape, or no numbers.
    """
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise bad_request(f"Expected classification of an output of rows and classes, but {name!r} has no classes")
    named = len(labels) == values.shape[1]
    order = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :classes]
    texts = np.empty(order.shape, object)
    for row, best in enumerate(order):
        # The text of a NumPy float32 is the shortest that reads back the same.
        texts[row] = [
            f"{values[row, index]!s}:{index}{f':{labels[index]}' if named else ''}".encode() for index in best
        ]
    return OutputTensor(name, BYTES, texts, binary)


def render_answer(bundle: Bundle, identity: str | None, outputs: Sequence[OutputTensor]) -> Answer:
    """Return the answer to a request.

    Args:
        bundle: Bundle of the model that computed the outputs.
        identity: Id of the request, which is returned if there is one.
        outputs: Outputs that the client requested.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name, "datatype": output.datatype, "shape": list(output.values.shape),
        }  # fmt: skip
        if output.binary:
            parts.append(to_binary(output.datatype, output.values))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        elif output.datatype == BYTES:
            entry["data"] = [text.decode() for text in output.values.ravel()]
        else:
            entry["data"] = np.ascontiguousarray(output.values).reshape(-1)
        described.append(entry)
    answer: dict[str, Any] = {"model_name": bundle.name, "model_version": bundle.version}
    if identity is not None:
        answer["id"] = identity
    header = orjson.dumps({**answer, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer(b"".join([header, *parts]), len(header) if parts else None)
