"""Declared tensors of a model: their metadata, reading them from requests, and writing them to answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import DTYPES, from_binary, to_integers
from cpt_serving.oip.schemas import InferInput, InferRequest
from cpt_serving.web.errors import bad_request
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import shown


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """An input or output as the model declares it.

    Args:
        name: Name of the tensor.
        datatype: Datatype of the protocol.
        shape: Dimensions; a text names one of any size.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dims(self) -> list[int]:
        """Dimensions in the protocol's form: -1 for any size."""
        return [-1 if isinstance(size, str) else size for size in self.shape]


class Wish(NamedTuple):
    """The form in which a client requests an output.

    Args:
        name: Name of the output.
        binary: Whether to send it in binary.
        classes: Number of classes to return for each row, best first, instead of the tensor; 0 returns the tensor.
    """

    name: str
    binary: bool
    classes: int = 0


def read_tensors(inputs: Sequence[InferInput], declared: Sequence[DeclaredTensor]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a request's tensors by name; inputs that were not sent are missing.

    Slow for tensors in JSON: call it in a thread.

    Raises:
        RequestError: 400 for a tensor that the model does not declare, or declares with another datatype or shape.
    """
    known = {tensor.name: tensor for tensor in declared}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for tensor in inputs:
        if tensor.name not in known or tensor.name in tensors:
            raise bad_request(f"Expected each of the inputs {list(known)} at most once, but got {shown(tensor.name)}")
        tensors[tensor.name] = _read_tensor(known[tensor.name], tensor)
    return tensors


def wanted_outputs(request: InferRequest, declared: Sequence[DeclaredTensor]) -> list[Wish]:
    """Return the requested outputs and their forms, each once; all outputs if the client names none.

    Raises:
        RequestError: 400 for an output that the model does not declare.
    """
    names = [tensor.name for tensor in declared]
    if not request.outputs:
        return [Wish(name, request.binary) for name in names]
    wanted = {output.name: output for output in request.outputs}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise bad_request(f"Expected outputs among {names}, but got {shown(unknown[0])}")
    return [
        Wish(each.name, each.as_bytes(request.binary), each.parameters.classification if each.parameters else 0)
        for each in wanted.values()
    ]


def output_tensors(
    wanted: Sequence[Wish], declared: Sequence[DeclaredTensor], values: Mapping[str, npt.NDArray[Any]]
) -> list[OutputTensor]:
    """Return the requested outputs in the order of the request."""
    datatypes = {tensor.name: tensor.datatype for tensor in declared}
    return [OutputTensor(each.name, datatypes[each.name], values[each.name], each.binary) for each in wanted]


def _read_tensor(declared: DeclaredTensor, tensor: InferInput) -> npt.NDArray[Any]:
    fits = len(tensor.shape) == len(declared.shape) and all(
        isinstance(expected, str) or size == expected
        for size, expected in zip(tensor.shape, declared.shape, strict=True)
    )
    if tensor.datatype != declared.datatype or not fits:
        raise bad_request(
            f"Expected {declared.name!r} as {declared.datatype} of the shape {declared.dims}, but got "
            f"{shown(tensor.datatype)} of {shown(tensor.shape)}"
        )
    if tensor.raw is None:
        return _from_json(tensor)
    # A copy, because the length of the JSON can leave the bytes unaligned.
    return from_binary(tensor.name, tensor.datatype, tensor.shape, tensor.raw).copy()


def json_array(tensor: InferInput) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """Return the numbers of a tensor in JSON, unconverted, in its shape.

    Raises:
        RequestError: 400 if they are not numbers, or of another shape; flat and nested lists are accepted.
    """
    if 0 in tensor.shape and tensor.data == []:
        return np.empty(tensor.shape, np.int64)
    array = to_numbers("data", tensor.data)
    if array.size != math.prod(tensor.shape) or (array.ndim > 1 and list(array.shape) != tensor.shape):
        raise bad_request(f"Expected data of the shape {tensor.shape}, flat or nested, but got {list(array.shape)}")
    return array.reshape(tensor.shape)


def _from_json(tensor: InferInput) -> npt.NDArray[Any]:
    name, datatype, array = tensor.name, tensor.datatype, json_array(tensor)
    if DTYPES[datatype].kind == "f":
        return array.astype(DTYPES[datatype])
    if array.dtype.kind == "f":
        raise bad_request(f"Expected {name!r} to hold integers of {datatype}, but got others")
    return to_integers(name, datatype, array)
