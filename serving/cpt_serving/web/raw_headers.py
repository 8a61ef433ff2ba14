"""Single headers of a request, read from the list that ASGI has: for the path that every request takes."""

from collections.abc import Iterable

from starlette.types import Scope


def raw_header(scope: Scope, name: bytes) -> str | None:
    """Return the value of a request's header, the first if there are several, or `None`.

    Args:
        scope: The request.
        name: Name of the header in lower case, as ASGI writes names.
    """
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None
