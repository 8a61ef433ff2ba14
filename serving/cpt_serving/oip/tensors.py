"""Tensors as a model declares them: what its metadata says, how they are read from requests and written to answers."""

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
    """A tensor as the model declares it.

    Args:
        name: Its name.
        datatype: One of the protocol's.
        shape: Its dimensions; those that are text can be of any size.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dims(self) -> list[int]:
        """Its dimensions as the protocol has them: -1 stands for any size."""
        return [-1 if isinstance(size, str) else size for size in self.shape]


class Wish(NamedTuple):
    """How a client wants an output.

    Args:
        name: Its name.
        binary: Whether as bytes.
        classes: How many classes of each row, best first, instead of the numbers; 0 asks for the numbers.
    """

    name: str
    binary: bool
    classes: int = 0


def read_tensors(inputs: Sequence[InferInput], declared: Sequence[DeclaredTensor]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a request's tensors by their names; those that are not sent are not there.

    Takes long for tensors in JSON: call it in a thread.

    Raises:
        RequestError: 400 for a tensor that the model does not declare, or as another.
    """
    known = {tensor.name: tensor for tensor in declared}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for tensor in inputs:
        if tensor.name not in known or tensor.name in tensors:
            raise bad_request(f"Expected each of the inputs {list(known)} at most once, but got {shown(tensor.name)}")
        tensors[tensor.name] = _read_tensor(known[tensor.name], tensor)
    return tensors


def wanted_outputs(request: InferRequest, declared: Sequence[DeclaredTensor]) -> list[Wish]:
    """Return which outputs a client wants and how, each once; all of them if it says nothing.

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
    """Return what a client wants of a model's outputs, in the order in which it asked."""
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
    # A copy, as the JSON's length can leave the bytes where no number may stand.
    return from_binary(tensor.name, tensor.datatype, tensor.shape, tensor.raw).copy()


def json_array(tensor: InferInput) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """Return the numbers of a tensor that stand in JSON, as they are there, in its shape.

    Raises:
        RequestError: 400, if they are none, or of another shape, flat or nested.
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
