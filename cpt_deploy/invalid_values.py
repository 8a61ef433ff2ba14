"""What is wrong with values that pydantic refuses, in the words of all other errors: expected this, but got that."""

from collections.abc import Callable, Mapping
from typing import Any

_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list as [a, b]",
    "too_long": "at most {max_length} values",
    "dict_type": "entries as {{key: value}}",
    "model_type": "entries as {{key: value}}",
    "none_required": "nothing",
    "greater_than": "a value above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a value below {lt:g}",
    "less_than_equal": "at most {le:g}",
}
"""What is expected, by pydantic's type of error."""


def place_of(entry: Mapping[str, Any]) -> str:
    """Return where a value stands, as `section.key`; empty for the whole."""
    return ".".join(map(str, entry["loc"]))


def problem_of(entry: Mapping[str, Any], show: Callable[[object], str] = repr) -> str:
    """Return what is wrong with a value.

    Args:
        entry: One of the errors of a `pydantic.ValidationError`.
        show: Returns a value as text.
    """
    if entry["type"] == "value_error":  # of a validator of this project
        return str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "missing":
        return "Expected a value, but got none"
    expected = _EXPECTED.get(entry["type"])
    if expected is None:
        said = str(entry["msg"]).replace("Input should be", "Expected")
    else:
        said = f"Expected {expected.format(**entry.get('ctx', {}))}"
    return f"{said}, but got {show(entry['input'])}"
