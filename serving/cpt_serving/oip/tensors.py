"""Tensors of a signature in requests and answers: their metadata, reading them, and their sizes."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpt_deploy.signature import TensorSpec, size_at
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import BOOL, BYTES, FLOATS, FP16, datatype_of, element_count, from_binary, to_integers
from cpt_serving.oip.schemas import InferInput, InferRequest, TensorMetadata
from cpt_serving.web.errors import bad_request
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import shown

Array = npt.NDArray[Any]

_ONE_PRODUCT = 4096


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


@functools.cache
def described(spec: TensorSpec) -> TensorMetadata:
    """Return the protocol's description of a tensor; -1 stands for a free size, above all that of the batch."""
    shape = [-1 if isinstance(size, str) else size for size in spec.whole_shape]
    return TensorMetadata(name=spec.name, datatype=datatype_of(spec.dtype), shape=shape)


def wanted_outputs(request: InferRequest, names: tuple[str, ...]) -> Sequence[Wish]:
    """Return the requested outputs and their forms, each once; all outputs, `names`, if the client names none.

    Raises:
        RequestError: 400 for an output that the model does not have.
    """
    if not request.outputs:
        return _all_outputs(names, request.binary)
    wanted = {output.name: output for output in request.outputs}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise bad_request(f"Expected outputs among {list(names)}, but got {shown(unknown[0])}")
    return [
        Wish(each.name, each.as_bytes(request.binary), each.parameters.classification if each.parameters else 0)
        for each in wanted.values()
    ]


@functools.cache
def _all_outputs(names: tuple[str, ...], binary: bool) -> Sequence[Wish]:
    return [Wish(name, binary) for name in names]


def output_tensor(wish: Wish, values: Array) -> OutputTensor:
    """Return an output in the requested form; strings become their bytes in UTF-8."""
    if values.dtype.kind == "O":
        encoded = [str(text).encode() for text in values.ravel()]
        values = np.array([*encoded, None], object)[:-1].reshape(values.shape)
    return OutputTensor(wish.name, datatype_of(values.dtype), values, wish.binary)


def read_tensor(spec: TensorSpec, tensor: InferInput) -> Array:
    """Return the array of an input, in the dtype of the signature; a view of its bytes if possible.

    An input of real numbers may be sent in any width; all of them must be finite. Slow for tensors in JSON.

    Raises:
        RequestError: 400 if its datatype, its shape or its values do not fit.
    """
    expected = described(spec)
    fits = len(tensor.shape) == len(expected.shape) and (
        # Of most models only the batch is free: one comparison of lists.
        (expected.shape[:1] == [-1] and tensor.shape[1:] == expected.shape[1:])
        or all(size in (-1, given) for size, given in zip(expected.shape, tensor.shape, strict=True))
    )
    converted = tensor.datatype in FLOATS and expected.datatype in FLOATS
    if not fits or not (tensor.datatype == expected.datatype or converted):
        raise bad_request(
            f"Expected {spec.name!r} as {expected.datatype} of the shape {expected.shape}, but got "
            f"{shown(tensor.datatype)} of {shown(tensor.shape)}"
        )
    if expected.datatype == BYTES:
        return _strings(spec.name, tensor)
    if tensor.raw is None:
        if tensor.datatype == FP16:
            raise bad_request("Expected FP32 or FP64 in JSON, but got FP16, which comes only as bytes")
        return to_dtype(spec, json_array(tensor))
    values = from_binary(tensor.name, tensor.datatype, tensor.shape, tensor.raw)
    if converted and tensor.datatype != expected.datatype:
        with np.errstate(over="ignore"):
            values = values.astype(spec.dtype)
    if values.dtype.kind == "f" and not _all_finite(values):
        raise bad_request(f"Expected {spec.name!r} to hold finite numbers of {spec.dtype}'s range, but got others")
    return values


def _all_finite(values: Array) -> bool:
    # The square of a number that is not finite is not finite either, and one product takes a third of the time. Larger
    # tensors would start threads of the BLAS library, which compete with the inference.
    if values.size <= _ONE_PRODUCT and values.dtype != np.float16:
        flat = values.reshape(-1)
        if math.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(values).all())


def _strings(name: str, tensor: InferInput) -> Array:
    """Return the strings of a BYTES tensor, in UTF-8 or in JSON, as onnxruntime takes them."""
    if tensor.raw is not None:
        elements = list(from_binary(tensor.name, BYTES, tensor.shape, tensor.raw).ravel())
    else:
        given = np.array([tensor.data, None], object)[0]
        elements = _flat(given) if isinstance(given, list) else [given]
    count = element_count(tensor.name, tensor.shape)
    if len(elements) != count:
        raise bad_request(f"Expected {shown(name)} to hold {count} texts, but got {len(elements)}")
    try:
        texts = [each.decode() if isinstance(each, bytes) else each for each in elements]
    except UnicodeDecodeError as error:
        raise bad_request(f"Expected {shown(name)} to hold texts in UTF-8, but got other bytes") from error
    if not all(isinstance(each, str) for each in texts):
        raise bad_request(f"Expected {shown(name)} to hold texts, but got other values")
    return np.array([*texts, None], object)[:-1].reshape(tensor.shape)


def _flat(values: list[Any]) -> list[Any]:
    """Return the elements of nested lists, whose depth the parser of JSON has bounded."""
    return [each for value in values for each in (_flat(value) if isinstance(value, list) else [value])]


def json_array(tensor: InferInput) -> Array:
    """Return the values of a tensor in JSON, unconverted, in its shape.

    Raises:
        RequestError: 400 if they are not numbers, or of another shape; flat and nested lists are accepted.
    """
    count = element_count(tensor.name, tensor.shape)
    if 0 in tensor.shape and tensor.data == []:
        return np.empty(tensor.shape, bool if tensor.datatype == BOOL else np.int64)
    array = to_numbers("data", tensor.data, booleans=tensor.datatype == BOOL)
    if array.size != count or (array.ndim > 1 and list(array.shape) != tensor.shape):
        raise bad_request(f"Expected data of the shape {tensor.shape}, flat or nested, but got {list(array.shape)}")
    return array.reshape(tensor.shape)


def to_dtype(spec: TensorSpec, array: Array) -> Array:
    """Convert values of JSON to the dtype of an input.

    Raises:
        RequestError: 400 if values are out of the input's range, or not integers where it takes those.
    """
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "fb":
        with np.errstate(over="ignore"):
            values = array.astype(dtype)
        # Numbers of JSON are in float32's range.
        if dtype == np.float16 and not np.isfinite(values).all():
            raise bad_request(f"Expected {spec.name!r} to hold numbers of float16's range, but got others")
        return values
    if array.dtype.kind == "f":
        raise bad_request(f"Expected {spec.name!r} to hold integers of {datatype_of(spec.dtype)}, but got others")
    return to_integers(spec.name, datatype_of(spec.dtype), array)


def row_bytes(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    """Return the bytes of one row of tensors.

    A size that does not follow from the free ones counts like their sum.
    """

    def elements(spec: TensorSpec) -> int:
        return math.prod(_known_size(size, sizes) for size in spec.shape)

    return sum(elements(spec) * np.dtype(spec.dtype).itemsize for spec in specs)


def _known_size(size: int | str, sizes: Mapping[str, int]) -> int:
    try:
        return size_at(size, sizes)
    except KeyError:
        return sum(sizes.values()) or 1
