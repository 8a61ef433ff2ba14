"""Bodies that have to be a JSON object."""

from typing import Any

import orjson

from cpt_serving.web.errors import bad_request


def parse_object(text: bytes | memoryview) -> dict[str, Any]:
    """Return the object that a text of JSON holds.

    Raises:
        RequestError: 400, if it is none.
    """
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"Expected a body of JSON, but got: {error}") from error
    if not isinstance(content, dict):
        raise bad_request(f"Expected a JSON object, but got {type(content).__name__}")
    return content
