"""Rows of tensors in the JSON of `/predict`: by column in `inputs`, or one after the other in `instances`."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpt_deploy.signature import TensorSpec
from cpt_serving.oip.tensors import Array, described, to_dtype
from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import parse_object
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import near_name, shown

Columns = Mapping[str, list[Any]]
"""Nested lists with the rows of each input."""


def parse_rows(
    body: bytes, specs: Sequence[TensorSpec], required: Sequence[str], features: Mapping[str, Sequence[str]]
) -> Columns:
    """Return the columns of a JSON body, with the numbers not yet looked at.

    Either `{"inputs": {name: [row, ...]}}`, or `{"instances": [{name: row}, ...]}`. Where a model needs only one input,
    its rows may stand in the place of `{name: ...}`.

    Args:
        body: The JSON.
        specs: Inputs of the model.
        required: Names of the inputs that a request needs.
        features: Names of the values in a row, for inputs whose rows may be objects `{feature: value}`.

    Raises:
        RequestError: 400 for other JSON; and like `parse_object`.
    """
    content = parse_object(body)
    names = [spec.name for spec in specs]
    if len(content) != 1 or not content.keys() <= {"inputs", "instances"}:
        raise bad_request(f'Expected one of the keys "inputs" and "instances", but got {shown(list(content))}')
    ((key, given),) = content.items()
    columns = _by_column(given, names) if key == "instances" else given
    if len(required) == 1 and not isinstance(columns, dict):
        columns = {required[0]: columns}
    if not isinstance(columns, dict) or not columns:
        raise bad_request(f"Expected {key} by the names of the inputs, {names}, but got {shown(given)}")
    for name, rows in columns.items():
        if name not in names:
            raise bad_request(f"Expected inputs among {names}, but got {shown(name)}{near_name(name, names)}")
        if not isinstance(rows, list) or not rows:
            raise bad_request(f"Expected {name!r} to be a list of rows, but got {shown(rows)}")
    return {name: _ordered(name, rows, features[name]) if name in features else rows for name, rows in columns.items()}


def read_rows(columns: Columns, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the arrays of columns, in the dtypes of the signature. Slow for many numbers.

    Raises:
        RequestError: 400 for values that are not numbers, or of another shape.
    """
    return {spec.name: _read(spec, columns[spec.name]) for spec in specs if spec.name in columns}


def _by_column(rows: object, names: Sequence[str]) -> object:
    """Return the columns of rows that are objects with the names of inputs; other rows as they are."""
    if not isinstance(rows, list) or not rows:
        raise bad_request(f"Expected instances to be a list of one or more, but got {shown(rows)}")
    first = rows[0]
    if not isinstance(first, dict) or not first.keys() <= set(names):
        return rows
    if any(not isinstance(row, dict) or row.keys() != first.keys() for row in rows):
        raise bad_request("Expected each of the instances to have the same inputs, but they differ")
    return {name: [row[name] for row in rows] for name in first}


def _ordered(name: str, rows: list[Any], features: Sequence[str]) -> list[Any]:
    """Return rows that are objects as lists of their values, in the order of the features."""
    if not isinstance(rows[0], dict):
        return rows
    odd = next((row for row in rows if not isinstance(row, dict) or row.keys() != set(features)), None)
    if odd is not None:
        raise bad_request(f"Expected each row of {name!r} to have {list(features)}, but got {shown(odd)}")
    return [[row[feature] for feature in features] for row in rows]


def _read(spec: TensorSpec, rows: list[Any]) -> Array:
    expected = described(spec)
    values = to_numbers(spec.name, rows, booleans=spec.dtype == "bool")
    fits = values.ndim == len(expected.shape) and all(
        size in (-1, given) for size, given in zip(expected.shape, values.shape, strict=True)
    )
    if not fits:
        raise bad_request(f"Expected {spec.name!r} of the shape {expected.shape}, but got {list(values.shape)}")
    return to_dtype(spec, values)
