"""Requests for inference, and their form over HTTP: JSON, with tensors in it or as bytes after it."""

import math
from collections.abc import Mapping, Sequence

from cpt_serving.oip.datatypes import DTYPES
from cpt_serving.oip.schemas import InferInput, InferParameters, InferRequest, ModelMetadata
from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import checked, parse_object
from cpt_serving.web.shown import shown

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header of requests and answers with the number of bytes of JSON before the bytes of the tensors."""

_RAW_HEADER_LENGTH = HEADER_LENGTH.lower().encode()


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the number of bytes of JSON that a request states; `None` means all of it.

    Args:
        headers: Headers of the request, with names in lower case.

    Raises:
        RequestError: 400 if it is not a number.
    """
    text = headers.get(_RAW_HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isdigit() and len(text) < 20):
        raise bad_request(f"Expected {HEADER_LENGTH} to be a number of bytes, but got {shown(text)}")
    return int(text)


def parse_request(body: bytes, json_bytes: int | None = None) -> InferRequest:
    """Parse a request; the bytes of its tensors are views of `body`.

    Args:
        body: The decompressed body.
        json_bytes: Number of bytes of JSON at its beginning; `None` if all of it is JSON.

    Raises:
        RequestError: 400 with the expectation.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise bad_request(f"Expected {json_bytes} bytes of JSON ({HEADER_LENGTH}), but got a body of {len(body)}")
    request = checked(InferRequest, parse_object(memoryview(body)[:json_bytes]))
    _attach(request.inputs, None if json_bytes is None else memoryview(body)[json_bytes:])
    return request


def raw_request(body: bytes, model: ModelMetadata) -> InferRequest:
    """Return the request of a body without JSON: rows of the model's only input, whose outputs are sent as bytes.

    Args:
        body: The decompressed body; its size gives the number of rows.
        model: The model's inputs.

    Raises:
        RequestError: 400 if the model has not one input with rows of a fixed number of bytes, or the body is not a
            number of whole rows.
    """
    tensor = model.inputs[0] if len(model.inputs) == 1 else None
    dtype = None if tensor is None else DTYPES.get(tensor.datatype)
    # The size of the body gives no number of rows without bytes, nor of such with free sizes.
    if tensor is None or dtype is None or not all(size > 0 for size in tensor.shape[1:]):
        raise bad_request(
            f"Expected JSON before the tensors ({HEADER_LENGTH}), since {model.name} has no rows of one size"
        )
    row_bytes = dtype.itemsize * math.prod(tensor.shape[1:])
    rows, rest = divmod(len(body), row_bytes)
    if rest or not rows:
        raise bad_request(
            f"Expected {row_bytes} bytes per row of {tensor.datatype} {tensor.shape[1:]}, but got {len(body)} bytes"
        )
    given = InferInput(name=tensor.name, shape=[rows, *tensor.shape[1:]], datatype=tensor.datatype)
    return InferRequest(inputs=[given.attach(memoryview(body))], parameters=InferParameters(binary_data_output=True))


def _attach(inputs: Sequence[InferInput], raw: memoryview | None) -> None:
    """Attach the bytes after the JSON to the binary tensors, in order."""
    for tensor in inputs:
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        if size is None:
            continue
        if raw is None:
            raise bad_request(f"Expected the header {HEADER_LENGTH} beside binary_data_size, but got none")
        if size > raw.nbytes:
            raise bad_request(
                f"Expected {size} bytes of {shown(tensor.name)} after the JSON (binary_data_size), but got {raw.nbytes}"
            )
        if tensor.data is not None:
            raise bad_request("Expected data or binary_data_size, but got both")
        tensor.attach(raw[:size])
        raw = raw[size:]
    if raw:
        raise bad_request(f"Expected no bytes after the JSON without binary_data_size, but {raw.nbytes} are left over")
