"""Numbers of JSON as arrays; types are checked before NumPy, which would convert mixed lists to strings."""

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

_MOST_AXES = 16
_LARGEST = float(np.finfo(np.float32).max)


def to_numbers(name: str, value: object, *, booleans: bool = False) -> npt.NDArray[Any]:
    """Return nested lists of numbers as an array: int64 or uint64 if all are integers, else float64.

    Args:
        name: Name of the array in errors.
        value: Nested lists.
        booleans: Whether booleans are expected instead of numbers.

    Raises:
        RequestError: 400 if they are ragged or hold anything but finite numbers in float32's range.
    """
    shape, numbers = _flatten(name, value)
    kinds = set(map(type, numbers))
    expected, word = ({bool}, "booleans") if booleans else ({int, float}, "numbers")
    if not kinds <= expected:  # a bool is no number, although it is a subclass of int
        odd = next(each for each in numbers if type(each) not in expected)
        raise bad_request(f"Expected {name} to be an array of {word}, but got {shown(odd)} in it")
    if booleans:
        return np.fromiter(numbers, np.bool_, len(numbers)).reshape(shape)
    if kinds == {int}:
        return _integers(name, numbers).reshape(shape)
    floats = np.fromiter(numbers, np.float64, len(numbers))
    if not (np.abs(floats) <= _LARGEST).all():
        raise bad_request(f"Expected {name} to hold numbers of float32's range, but got others")
    return floats.reshape(shape)


def _flatten(name: str, value: object) -> tuple[list[int], list[Any]]:
    """Return the shape and the innermost elements of nested lists."""
    if not isinstance(value, list) or not value:
        raise bad_request(f"Expected {name} to be an array of numbers, but got {shown(value)}")
    shape, elements = [len(value)], value
    while isinstance(elements[0], list):
        width = len(elements[0])
        if set(map(type, elements)) != {list} or set(map(len, elements)) != {width} or not width:
            raise bad_request(f"Expected {name} to be a rectangular array of numbers, but got {shown(value)}")
        shape.append(width)
        if len(shape) > _MOST_AXES:
            raise bad_request(f"Expected {name} to have at most {_MOST_AXES} axes, but got more")
        elements = list(chain.from_iterable(elements))
    return shape, elements


def _integers(name: str, numbers: list[int]) -> npt.NDArray[np.int64] | npt.NDArray[np.uint64]:
    try:
        return np.fromiter(numbers, np.int64, len(numbers))
    except OverflowError:
        if min(numbers) < 0:
            raise bad_request(f"Expected {name} to hold integers of 64 bits, but got others") from None
        return np.fromiter(numbers, np.uint64, len(numbers))
