"""Small files of the server itself, served from memory: requests for them never access the file system."""

import mimetypes
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.responses import Response

from cpt_serving.access.control import requires
from cpt_serving.web.errors import RequestError
from cpt_serving.web.shown import shown

FILE_HEADERS: Mapping[str, str] = {"Cache-Control": "no-cache"}


def files_router(prefix: str, files: Mapping[str, bytes]) -> APIRouter:
    """Return the route `{prefix}/{name}`, which needs no key.

    Args:
        prefix: Path of the files.
        files: Contents by file name.
    """
    router = APIRouter(dependencies=[requires(None, any_query=True)])

    async def file(name: str) -> Response:
        if name not in files:
            raise RequestError(404, f"Expected one of the files {', '.join(files)}, but got {shown(name)}")
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], media_type=media_type, headers=dict(FILE_HEADERS))

    router.add_api_route(f"{prefix}/{{name}}", file, include_in_schema=False)
    return router


def read_folder(folder: Traversable) -> dict[str, bytes]:
    """Return the files of a folder of a package."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
