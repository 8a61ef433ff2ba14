"""The protocol's datatypes as NumPy arrays and as bytes: little-endian, row-major, without padding."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes with elements of a fixed size."""

BYTES, BOOL, FP16 = "BYTES", "BOOL", "FP16"

FLOATS = frozenset({"FP16", "FP32", "FP64"})
"""Datatypes of real numbers."""

_DATATYPES: dict[str | np.dtype[Any], str] = {
    key: datatype for datatype, dtype in DTYPES.items() for key in (dtype, dtype.name)
} | {"object": BYTES, np.dtype(object): BYTES}

_LENGTH = struct.Struct("<I")

_MOST_ELEMENTS = np.iinfo(np.intp).max // 8
"""Maximum product of an array's sizes other than 0, for elements of 8 bytes."""


def datatype_of(dtype: str | np.dtype[Any]) -> str:
    """Return the datatype of the protocol for a dtype or NumPy's name of it."""
    return _DATATYPES[dtype]


def element_count(name: str, shape: Sequence[int]) -> int:
    """Return the number of elements of a tensor.

    Args:
        name: Name of the tensor in errors.
        shape: Dimensions, none negative.

    Raises:
        RequestError: 400 if one size is 0 and the others are beyond those of any array.
    """
    count = math.prod(shape)
    # The elements that were sent bound all sizes of other tensors.
    if not count and math.prod([size for size in shape if size]) > _MOST_ELEMENTS:
        raise bad_request(f"Expected {shown(name)} to have the shape of an array, but got {shown(list(shape))}")
    return count


def from_binary(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> npt.NDArray[Any]:
    """Convert bytes to a tensor, as a view of them if datatype and alignment allow that.

    Args:
        name: Name of the tensor in errors.
        datatype: Datatype of the protocol.
        shape: Dimensions, none negative.
        raw: Elements, as one-dimensional bytes.

    Returns:
        An array of `shape`; for BYTES an array of `bytes` objects.

    Raises:
        RequestError: 400 if the bytes do not match datatype and shape, or no array has such a shape.
    """
    count = element_count(name, shape)
    if datatype == BYTES:
        return _split_elements(name, raw, count).reshape(shape)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise bad_request(f"Expected a datatype of the protocol, but got {shown(datatype)}")
    if raw.nbytes != count * dtype.itemsize:
        raise bad_request(
            f"Expected {shown(name)} of datatype {datatype} and shape {shown(list(shape))} to have "
            f"{count * dtype.itemsize} bytes, but got {raw.nbytes}"
        )
    if datatype == BOOL:
        # Bytes other than 0 and 1 would make an invalid array.
        booleans: npt.NDArray[np.bool_] = np.frombuffer(raw, np.uint8) != 0
        return booleans.reshape(shape)
    values = np.frombuffer(raw, dtype)
    if not values.flags.aligned:
        # By the length of the JSON before it. NumPy's own copy would hand the interpreter to another thread.
        values = np.frombuffer(bytes(raw), dtype)
    return values.reshape(shape)


def to_integers(name: str, datatype: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert integers to an integer datatype of the protocol.

    Args:
        name: Name of the tensor in errors.
        datatype: Integer datatype of the protocol.
        values: Integers of any type.

    Raises:
        RequestError: 400 if values are out of the datatype's range.
    """
    limits = np.iinfo(DTYPES[datatype])
    if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
        raise bad_request(
            f"Expected {shown(name)} to hold integers of {datatype}, {limits.min}..{limits.max}, but got "
            f"{values.min()}..{values.max()}"
        )
    return values.astype(DTYPES[datatype])


def to_binary(datatype: str, values: npt.NDArray[Any]) -> bytes:
    """Return the bytes of a tensor.

    Args:
        datatype: Datatype of the protocol.
        values: An array of a matching type; `bytes` objects for BYTES.
    """
    if datatype == BYTES:
        return b"".join(_LENGTH.pack(len(element)) + element for element in values.ravel())
    return values.astype(DTYPES[datatype], copy=False).tobytes()


def _split_elements(name: str, raw: memoryview, count: int) -> npt.NDArray[np.object_]:
    """Return the elements of a BYTES tensor; each is encoded as its length, uint32, and its bytes."""
    # Each element takes at least the bytes of its length, which bounds the allocation for a false shape.
    if count * _LENGTH.size > raw.nbytes:
        raise bad_request(f"Expected {shown(name)} to hold {count} elements, but got only {raw.nbytes} bytes")
    elements = np.empty(count, object)
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > raw.nbytes:
            raise bad_request(f"Expected {shown(name)} to hold {count} elements, but its bytes end after {index}")
        (length,) = _LENGTH.unpack_from(raw, position)
        position = start + length
        if position > raw.nbytes:
            raise bad_request(
                f"Expected element {index} of {shown(name)} to have {length} bytes, but {raw.nbytes - start} follow"
            )
        elements[index] = bytes(raw[start:position])
    if position != raw.nbytes:
        raise bad_request(
            f"Expected {shown(name)} to hold {count} elements, but {raw.nbytes - position} bytes are left over"
        )
    return elements
