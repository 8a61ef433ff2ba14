"""JSON answers, written by orjson: NumPy arrays directly, float32 as the shortest text that reads back the same."""

from typing import Any

import orjson
from starlette.responses import Response


class JsonResponse(Response):
    """An answer of JSON types, dataclasses and contiguous NumPy arrays."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the content as JSON bytes."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
