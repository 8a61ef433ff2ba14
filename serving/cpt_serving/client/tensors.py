"""Tensors of the Open Inference Protocol as bytes: JSON, then each tensor's elements, little-endian and in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header, of requests and answers, that says how many bytes of JSON come before the tensors."""

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The protocol's names of types, but for BYTES and BF16, which NumPy does not have."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def encode_request(
    name: str, values: npt.NDArray[Any], *, parameters: Mapping[str, Any] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request with one input, asking for binary outputs.

    Args:
        name: Name of the input.
        values: Its elements, of any type of `DATATYPES` and any shape.
        parameters: Further parameters of the request.

    Raises:
        ValueError: If the protocol has no name for the type.
    """
    little = values.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise ValueError(f"Expected an array of numbers or booleans, but got {values.dtype}")
    data = np.ascontiguousarray(values, little).tobytes()
    tensor = {
        "name": name,
        "datatype": _NAMES[little],
        "shape": list(values.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"parameters": {**(parameters or {}), "binary_data_output": True}, "inputs": [tensor]})
    headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return head + data, headers


def decode_answer(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the JSON of an answer and its outputs by name, whether they came in JSON or as bytes.

    Args:
        body: The whole body.
        header_length: The header of `HEADER_LENGTH`, if there is one.

    Raises:
        ValueError: If the body is no answer of the protocol, or an output is of a type that NumPy does not have.
    """
    size = len(body) if header_length is None else int(header_length)
    if not 0 <= size <= len(body):
        raise ValueError(f"Expected {size} bytes of JSON, but got a body of {len(body)}")
    head = orjson.loads(memoryview(body)[:size])
    rest, outputs = memoryview(body)[size:], {}
    try:
        for tensor in head["outputs"]:
            length = (tensor.get("parameters") or {}).get("binary_data_size")
            outputs[tensor["name"]] = _array(tensor, None if length is None else rest[:length])
            rest = rest[length or 0 :]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected outputs of the Open Inference Protocol, but got: {error!r}") from error
    if rest:
        raise ValueError(f"Expected as many bytes as the outputs have, but got {len(rest)} more")
    return head, outputs


def _array(tensor: Mapping[str, Any], raw: memoryview | None) -> npt.NDArray[Any]:
    dtype = DATATYPES.get(tensor["datatype"])
    if dtype is None:
        raise ValueError(f"Expected an output of numbers, but got {tensor['datatype']!r}")
    values = np.asarray(tensor["data"], dtype) if raw is None else np.frombuffer(raw, dtype)
    return values.reshape(tensor["shape"])
