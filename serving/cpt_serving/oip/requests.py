"""Requests for inference, and how they are written over HTTP: as JSON, with tensors in it or as bytes behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import parse_object
from cpt_serving.web.shown import shown

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header, of requests and answers, that says how many bytes of JSON come before the bytes of the tensors."""

_RAW_HEADER_LENGTH = HEADER_LENGTH.lower().encode()

T = TypeVar("T")


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
    content, raw = _split_body(body, json_bytes)
    parameters = parameters_of("the request", content)
    identity = content.get("id")
    binary = flag("binary_data_output", parameters)
    return InferRequest(
        inputs=_parse_inputs(content, raw),
        outputs=parse_outputs(content.get("outputs"), binary=binary),
        binary=binary,
        id=None if identity is None else typed("id", identity, str, "text"),
        timeout_us=parse_timeout(parameters.get("timeout")),
    )


def parse_timeout(microseconds: object) -> int:
    """Return the parameter `timeout` of a request; 0 and `None` state none.

    Raises:
        RequestError: 400, if it is no number of microseconds.
    """
    if microseconds is None:
        return 0
    if not _is_count(microseconds):
        raise bad_request(f"Expected timeout to be a number of microseconds, but got {shown(microseconds)}")
    return microseconds


def parse_outputs(outputs: object, *, binary: bool) -> list[RequestedOutput]:
    """Return which outputs the client wants, and how.

    Args:
        outputs: The list of the request, or `None`.
        binary: What holds for outputs that say nothing of their own.

    Raises:
        RequestError: 400, if they are asked for in a way that is not known.
    """
    listed = [] if outputs is None else typed("outputs", outputs, list, "a list")
    return [_parse_output(entry, binary) for entry in listed]


def parse_shape(name: str, shape: list[Any]) -> list[int]:
    """Return the dimensions of a tensor.

    Raises:
        RequestError: 400, if they are no sizes.
    """
    if not all(_is_count(size) for size in shape):
        raise bad_request(f"Expected the shape of {shown(name)} to be a list of sizes, but got {shown(shape)}")
    return shape


def _split_body(body: bytes, json_bytes: int | None) -> tuple[dict[str, Any], memoryview | None]:
    """Return the JSON of a body, and a view of the bytes behind it, if it says that there can be some."""
    if json_bytes is None:
        return parse_object(body), None
    if json_bytes > len(body):
        raise bad_request(f"Expected {json_bytes} bytes of JSON ({HEADER_LENGTH}), but got a body of {len(body)}")
    return parse_object(memoryview(body)[:json_bytes]), memoryview(body)[json_bytes:]


def _parse_inputs(content: dict[str, Any], raw: memoryview | None) -> list[InputTensor]:
    """Return the tensors; those that came as bytes have theirs one behind the other."""
    tensors = []
    for entry in field("the request", content, "inputs", list, "a list"):
        tensor = _parse_input(entry, raw)
        if raw is not None and tensor.raw is not None:
            raw = raw[tensor.raw.nbytes :]
        tensors.append(tensor)
    if raw:
        raise bad_request(f"Expected no bytes after the JSON without binary_data_size, but {raw.nbytes} are left over")
    return tensors


def _parse_input(entry: Any, raw: memoryview | None) -> InputTensor:
    """Return a tensor, which takes of the bytes what it says that it has."""
    name = field("inputs", entry, "name", str, "text")
    shape = parse_shape(name, field("inputs", entry, "shape", list, "a list of sizes"))
    datatype = field("inputs", entry, "datatype", str, "text")
    size = parameters_of(f"input {shown(name)}", entry).get("binary_data_size")
    if size is None:
        return InputTensor(name, datatype, shape, data=entry.get("data"))
    if raw is None:
        raise bad_request(f"Expected the header {HEADER_LENGTH} beside binary_data_size, but got none")
    if not _is_count(size) or size > raw.nbytes:
        raise bad_request(
            f"Expected {shown(size)} bytes of {shown(name)} after the JSON (binary_data_size), but got {raw.nbytes}"
        )
    if entry.get("data") is not None:
        raise bad_request("Expected data or binary_data_size, but got both")
    return InputTensor(name, datatype, shape, raw=raw[:size])


def _parse_output(entry: Any, binary: bool) -> RequestedOutput:
    name = field("outputs", entry, "name", str, "text")
    parameters = parameters_of(f"output {shown(name)}", entry)
    classes = parameters.get("classification", 0)
    if not _is_count(classes):
        raise bad_request(f"Expected classification to be a number of classes, but got {shown(classes)}")
    return RequestedOutput(name, flag("binary_data", parameters, default=binary), classes)


def field(where: str, entry: object, key: str, kind: type[T], described: str) -> T:
    """Return a field of an object in a request.

    Raises:
        RequestError: 400, if it is missing or of another type.
    """
    fields = typed(f"each of {where}" if where != "the request" else where, entry, dict, "an object")
    if key not in fields:
        raise bad_request(f"Expected {key} in {where}, but got {shown(sorted(fields))}")
    return typed(key, fields[key], kind, described)


def typed(name: str, value: object, kind: type[T], described: str) -> T:
    """Return a value if it is of a type.

    Raises:
        RequestError: 400, if it is not.
    """
    if not isinstance(value, kind):
        raise bad_request(f"Expected {name} to be {described}, but got {shown(value)}")
    return value


def parameters_of(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request or of one of its tensors; none are none.

    Raises:
        RequestError: 400, if they are no object, or want a tensor in shared memory.
    """
    given = entry.get("parameters")
    parameters: dict[str, Any] = {} if given is None else typed(f"the parameters of {where}", given, dict, "an object")
    if "shared_memory_region" in parameters:
        raise bad_request("Expected tensors in the request and the answer, but got one in shared memory")
    return parameters


def flag(name: str, parameters: Mapping[str, Any], *, default: bool = False) -> bool:
    """Return a parameter that is true or false.

    Raises:
        RequestError: 400, if it is something else.
    """
    return typed(name, parameters.get(name, default), bool, "true or false")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
