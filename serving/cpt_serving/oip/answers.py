"""Answers to requests for inference, and their form over HTTP: JSON, with tensors in it or as bytes after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from cpt_deploy.bundle import Bundle
from cpt_serving.oip.datatypes import BYTES, to_binary


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
