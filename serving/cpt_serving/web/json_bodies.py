"""JSON bodies, parsed within limits on depth and number of values, which determine the cost of parsing."""

from collections.abc import Mapping
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
import orjson
from pydantic import BaseModel, ValidationError

from cpt_deploy.invalid_values import place_of, problem_of
from cpt_serving.web.bodies import INLINE_BYTES, charge, running_body
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.shown import near_name, shown

B = TypeVar("B", bound=BaseModel)

MAX_DEPTH = 64
MAX_CONTAINERS = 131_072
"""Maximum lists and objects of one body. Tensors can be flat, so no request needs more."""

MAX_VALUES = 1_000_000
"""Maximum values of one body: creating more blocks all threads for too long; they belong into binary tensors."""

# Upper bounds of Python's memory: for an object with one entry; a float in a list; a list of one-digit integers.
_CONTAINER_BYTES = 200
_VALUE_BYTES = 40
_BYTES_PER_BYTE = 9

CONTROL_BYTES = 16 * 1024
"""Maximum size of a request that concerns models rather than data."""

_MOST_PROBLEMS = 4
_SMALL_BYTES = 4096
_PIECE_BYTES = 1024 * 1024
_QUOTE = ord('"')
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def parse_object(text: bytes | memoryview) -> dict[str, Any]:
    """Parse a JSON object. Slow for a large one: call it in a thread.

    Raises:
        RequestError: 400 if it is not an object or too deeply nested, 413 if it has too many lists, objects or values,
            503 if there is no memory for its content at present.
    """
    text = bytes(text)
    _bound_content(text)
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"Expected a body of JSON, but got: {error}") from error
    if not isinstance(content, dict):
        raise bad_request(f"Expected a JSON object, but got {type(content).__name__}")
    return content


async def read_object(max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body of the current request; an empty body is an empty object.

    Raises:
        RequestError: Like `RequestBody.read` and `parse_object`.
    """
    body = await running_body().read(max_bytes)
    if not body.strip():
        return {}
    return parse_object(body) if len(body) <= INLINE_BYTES else await anyio.to_thread.run_sync(parse_object, body)


def checked(model: type[B], content: Mapping[str, Any]) -> B:
    """Validate the content of a request against its schema.

    Raises:
        RequestError: 400 that names the invalid fields, and for an unknown name the nearest known one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(model, dict(entry)) for entry in error.errors()[:_MOST_PROBLEMS])
        raise bad_request(f"Expected a request as /docs describes it, but got: {problems}") from error


def _problem(model: type[BaseModel], entry: dict[str, Any]) -> str:
    where = place_of(entry)
    if entry["type"] != "extra_forbidden":
        return f"{where[:100]}: {problem_of(entry, shown)}"
    return f"{shown(where)}, which is unknown{near_name(where, model.model_fields)}"


def _bound_content(text: bytes) -> None:
    """Raise a `RequestError` for a text that would take too much stack or memory to parse."""
    opened = text.count(b"[") + text.count(b"{")
    if opened <= MAX_DEPTH and len(text) <= _SMALL_BYTES:
        return
    values = text.count(b",")
    if values > MAX_VALUES:
        raise RequestError(413, f"Expected JSON of at most {MAX_VALUES} values, but got {values} (or send bytes)")
    if opened > MAX_CONTAINERS:
        raise RequestError(
            413, f"Expected JSON of at most {MAX_CONTAINERS} lists and objects, but got {opened} (tensors can be flat)"
        )
    if opened > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise bad_request(f"Expected JSON of at most {MAX_DEPTH} levels, but got more")
    charge(min(_VALUE_BYTES * values, _BYTES_PER_BYTE * len(text)) + _CONTAINER_BYTES * opened)


def _depth(text: bytes) -> int:
    """Return the nesting depth of lists and objects; any number for a text that is not JSON."""
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    inside = depth = deepest = 0
    for start in range(0, len(text), _PIECE_BYTES):
        piece = np.frombuffer(text, np.uint8, min(_PIECE_BYTES, len(text) - start), start)
        in_string = (np.cumsum(piece == _QUOTE, dtype=np.uint8) + np.uint8(inside)) & 1  # overflow keeps the parity
        depths = np.cumsum(_STEPS[piece] * (in_string == 0), dtype=np.int32) + depth
        deepest = max(deepest, int(depths.max()))
        inside, depth = int(in_string[-1]), int(depths[-1])
    return deepest
