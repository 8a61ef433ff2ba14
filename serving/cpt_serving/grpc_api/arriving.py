"""Parsing of received messages, with a limit on their memory before, because many small fields become large objects."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from cpt_serving.service import Service
from cpt_serving.web.bodies import INLINE_BYTES, MemoryShare, current_message, too_large
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.json_bodies import CONTROL_BYTES

_RAW_INPUT_CONTENTS = 0x3A  # field 7, of bytes
_LENGTH_DELIMITED = 2
_MOST_FIELDS = 4096
_MOST_SHIFT = 63

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
        RequestError: 413 if it has too many tensors.
    """
    raw = position = 0
    for _ in range(_MOST_FIELDS):
        tag, position = _varint(data, position)
        if tag & 7 != _LENGTH_DELIMITED:  # not a field of the message, or its end
            break
        size, position = _varint(data, position)
        position += size
        if position > len(data):
            break
        if tag == _RAW_INPUT_CONTENTS:
            raw += size
    else:
        raise RequestError(413, f"Expected a message of less than {_MOST_FIELDS} tensors and outputs, but got more")
    return _BYTES_PER_RAW_BYTE * raw + _BYTES_PER_DESCRIBED_BYTE * (len(data) - raw)


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
