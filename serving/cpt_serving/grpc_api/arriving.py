"""Parsing of received messages, with a limit on their memory before, because many small fields become large objects."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from cpt_serving.service import Service
from cpt_serving.web.bodies import INLINE_BYTES, MemoryShare, current_message, too_large
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.json_bodies import CONTROL_BYTES

_INPUT, _OUTPUT, _RAW_INPUT_CONTENTS = 0x2A, 0x32, 0x3A  # fields 5 to 7 of the message
_CONTENTS = 0x2A  # field 5 of an input, its typed elements
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}
_LEAST_TAG = 8  # of field 1
_MOST_SHIFT = 63

_MOST_FIELDS = 4096
_MOST_FIELDS_OF_TENSORS = 8192
_MOST_DESCRIPTION_BYTES = 1024 * 1024
"""Names, shapes and parameters: parsing them blocks all threads, 350,000 parameters for a second."""

_MOST_UNKNOWN_BYTES = 64 * 1024
"""Bytes that are not understood here, and that the library may yet parse."""

_BYTES_PER_RAW_BYTE = 2
"""Memory per byte: the received message, and its bytes in the parsed one."""

_BYTES_PER_DESCRIBED_BYTE = 24
"""Memory per byte of all other fields, roughly: an empty element takes 2 bytes of a message and 50 of memory."""


@asynccontextmanager
async def parsed(service: Service, kind: Any, data: bytes) -> AsyncIterator[Any]:
    """Parse a message, and count its memory in the budget of all bodies until it is answered.

    Args:
        service: The service that answers.
        kind: Class of the message; all but `ModelInferRequest` are small.
        data: Received bytes.

    Raises:
        RequestError: 413 if it is larger than allowed, 503 if other requests use the memory at present, 400 if it is
            not a message of this class.
    """
    memory = service.memory
    infer = kind is service_pb2.ModelInferRequest
    if not infer and len(data) > CONTROL_BYTES:
        raise too_large(CONTROL_BYTES, f"{len(data)} bytes")
    size = memory_of(data) if infer else len(data)
    if size > memory.limit:
        raise RequestError(
            413,
            f"Expected a message that takes at most {memory.limit} bytes of memory, but got more "
            "(tensors take least in raw_input_contents)",
        )
    share = MemoryShare(memory)
    share.charge(size)
    current_message.set(share)
    try:
        yield await _parse(kind, data)
    finally:
        current_message.set(None)
        share.release()


async def _parse(kind: Any, data: bytes) -> Any:
    try:
        if len(data) <= INLINE_BYTES:
            return kind.FromString(data)
        return await anyio.to_thread.run_sync(kind.FromString, data)
    except DecodeError as error:
        raise bad_request(f"Expected a message of the protocol, but got: {error}") from error


def memory_of(data: bytes) -> int:
    """Return the approximate maximum memory of a `ModelInferRequest` without parsing it.

    Raises:
        RequestError: 413 if it has too many tensors, or if names, shapes and parameters take too much time to parse;
            400 if it is no such message.
    """
    raw = elements = inner = 0
    for number, (tag, start, end) in enumerate(_fields(data, 0, len(data))):
        if number >= _MOST_FIELDS:
            raise RequestError(413, f"Expected a message of less than {_MOST_FIELDS} tensors and outputs, but got more")
        if tag == _RAW_INPUT_CONTENTS:
            raw += end - start
        elif tag in (_INPUT, _OUTPUT):
            for tag_in_tensor, start_in_tensor, end_in_tensor in _fields(data, start, end):
                inner += 1
                if inner > _MOST_FIELDS_OF_TENSORS:
                    raise RequestError(
                        413, f"Expected tensors with {_MOST_FIELDS_OF_TENSORS} fields and parameters, but got more"
                    )
                if tag_in_tensor == _CONTENTS:
                    elements += end_in_tensor - start_in_tensor
    described = len(data) - raw
    if described - elements > _MOST_DESCRIPTION_BYTES:
        raise RequestError(
            413,
            f"Expected at most {_MOST_DESCRIPTION_BYTES} bytes besides the elements of tensors, but got "
            f"{described - elements}",
        )
    return _BYTES_PER_RAW_BYTE * raw + _BYTES_PER_DESCRIBED_BYTE * described


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield tag, start and end of the fields of a message, until one that is not understood.

    Raises:
        RequestError: 400 if much is left then.
    """
    while position < end:
        tag, start = _varint(data, position)
        if tag < _LEAST_TAG:
            break
        size = _FIXED.get(tag & 7, 0)
        if tag & 7 == _VARINT:
            _, start = _varint(data, start)
        elif tag & 7 == _LENGTH_DELIMITED:
            size, start = _varint(data, start)
        elif not size:
            break
        if start + size > end:
            break
        yield tag, start, start + size
        position = start + size
    if end - position > _MOST_UNKNOWN_BYTES:
        raise bad_request("Expected a message of the protocol, but got another")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a varint of protobuf's encoding and the position of its end; 0 if there is none."""
    value = 0
    for shift in range(0, _MOST_SHIFT + 1, 7):
        if position >= len(data):
            return 0, position
        value |= (data[position] & 0x7F) << shift
        position += 1
        if data[position - 1] < 0x80:
            return value, position
    return 0, position
