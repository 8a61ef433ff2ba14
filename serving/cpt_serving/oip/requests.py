"""Requests for inference, and how they are written over HTTP: as JSON, with tensors in it or as bytes behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpt_serving.oip import schemas
from cpt_serving.oip.schemas import InferBody, InferInput, InferParameters, OutputParameters
from cpt_serving.web.errors import bad_request
from cpt_serving.web.generation_schemas import checked
from cpt_serving.web.json_bodies import parse_object
from cpt_serving.web.shown import shown

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header, of requests and answers, that says how many bytes of JSON come before the bytes of the tensors."""

_RAW_HEADER_LENGTH = HEADER_LENGTH.lower().encode()


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor as the client sent it.

    Args:
        name: Its name.
        datatype: One of the protocol's, or what the client takes for one.
        shape: Its dimensions, none negative.
        raw: Its bytes, if it came as bytes.
        data: What stands in JSON, else.
    """

    name: str
    datatype: str
    shape: list[int]
    raw: memoryview | None = None
    data: Any = None


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """How the client wants an output.

    Args:
        name: Its name.
        binary: Whether as bytes.
        classes: How many classes of each row, best first, instead of the numbers; 0 asks for the numbers.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for inference as the client wrote it, whichever model it is for.

    Args:
        inputs: The tensors that it brings.
        outputs: Those that it wants; none asks for all.
        binary: Whether all are wanted as bytes, where none is named.
        id: Comes back in the answer, if there is one.
        timeout_us: Microseconds within which the answer is worth having; 0 states none.
    """

    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    binary: bool = False
    id: str | None = None
    timeout_us: int = 0


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return how many bytes of JSON a request says that it has; `None` means all of it.

    Args:
        headers: The request's, with names in lower case.

    Raises:
        RequestError: 400, if that is no number.
    """
    text = headers.get(_RAW_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isdigit() and len(text) < 20):
        raise bad_request(f"Expected {HEADER_LENGTH} to be a number of bytes, but got {shown(text)}")
    return int(text)


def parse_request(body: bytes, json_bytes: int | None = None) -> InferRequest:
    """Return a request; the bytes of its tensors are views of `body`.

    Args:
        body: The decompressed body.
        json_bytes: How many of its bytes are JSON; `None` means that all are.

    Raises:
        RequestError: 400 with what was expected.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise bad_request(f"Expected {json_bytes} bytes of JSON ({HEADER_LENGTH}), but got a body of {len(body)}")
    content = checked(InferBody, parse_object(memoryview(body)[:json_bytes]))
    raw = None if json_bytes is None else memoryview(body)[json_bytes:]
    parameters = content.parameters or InferParameters()
    return InferRequest(
        inputs=_inputs(content.inputs, raw),
        outputs=wishes(content.outputs or (), binary=parameters.binary_data_output),
        binary=parameters.binary_data_output,
        id=content.id,
        timeout_us=parameters.timeout or 0,
    )


def wishes(outputs: Sequence[schemas.RequestedOutput], *, binary: bool) -> list[RequestedOutput]:
    """Return which outputs the client wants, and how.

    Args:
        outputs: As they stand in the request.
        binary: What holds for outputs that say nothing of their own.
    """
    return [
        RequestedOutput(each.name, binary if given.binary_data is None else given.binary_data, given.classification)
        for each in outputs
        for given in [each.parameters or OutputParameters()]
    ]


def _inputs(inputs: Sequence[InferInput], raw: memoryview | None) -> list[InputTensor]:
    """Return the tensors; those that came as bytes have theirs one behind the other."""
    tensors = []
    for given in inputs:
        size = None if given.parameters is None else given.parameters.binary_data_size
        if size is None:
            tensors.append(InputTensor(given.name, given.datatype, given.shape, data=given.data))
            continue
        if raw is None:
            raise bad_request(f"Expected the header {HEADER_LENGTH} beside binary_data_size, but got none")
        if size > raw.nbytes:
            raise bad_request(
                f"Expected {size} bytes of {shown(given.name)} after the JSON (binary_data_size), but got {raw.nbytes}"
            )
        if given.data is not None:
            raise bad_request("Expected data or binary_data_size, but got both")
        tensors.append(InputTensor(given.name, given.datatype, given.shape, raw=raw[:size]))
        raw = raw[size:]
    if raw:
        raise bad_request(f"Expected no bytes after the JSON without binary_data_size, but {raw.nbytes} are left over")
    return tensors
