"""Routes that are documented as FastAPI's are, and run as thinly as Starlette's do."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """A route whose function gets the request and the path's parameters and returns the response itself.

    FastAPI's handling of dependencies, bodies and response models is left out: a small inference takes less time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what calls the function."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle
