"""Server-sent events in the format of the HTML standard: each is a line `data: JSON` and an empty line."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import orjson
from starlette.responses import Response, StreamingResponse

from cpt_deploy.errors import CptError
from cpt_serving.web.errors import INTERNAL_ERROR, RequestError, running_id

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter keeps nginx from buffering them


async def event_response(events: AsyncIterator[dict[str, Any]]) -> Response:
    """Return a stream of events once the first one is ready, so that errors before it have an HTTP status.

    A later error is sent as a last event, `{"error": ..., "request_id": ...}`.

    Args:
        events: Contents of the events, JSON types; closed when the client disconnects.

    Raises:
        RequestError: If there is no first event.
    """
    source = cast("AsyncGenerator[dict[str, Any], None]", events)
    first = await anext(source)
    return StreamingResponse(_lines(first, source), media_type="text/event-stream", headers=_HEADERS)


async def _lines(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except (RequestError, CptError) as error:
            yield _line({"error": error.message, "request_id": running_id()})
        except Exception:
            # The status has been sent: an event is the only way to tell the client; the log gets the error too.
            yield _line({"error": INTERNAL_ERROR, "request_id": running_id()})
            raise


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
