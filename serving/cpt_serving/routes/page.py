"""The page at `/` where people try the models, and the JSON that it reads: models, evidence, samples, statistics."""

import importlib.resources
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import RedirectResponse, Response

from cpt_serving.evidence import Evidence, evidence_of
from cpt_serving.inference.errors import NotReadyError
from cpt_serving.samples import Samples
from cpt_serving.service import Service
from cpt_serving.telemetry.stats import Stats, summarize
from cpt_serving.web.errors import RequestError
from cpt_serving.web.schemas import ErrorAnswer, ServedModel, ServedModels

_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

PAGE_HEADERS: Mapping[str, str] = {
    # Nothing inline, nothing from elsewhere; previews of chosen files are blobs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

ModelName = Annotated[str | None, Query(description="which model, where several are served")]


def page_router(service: Service) -> APIRouter:
    """Return the routes of the page: `/`, `/page/...`, `/models`, `/evidence`, `/samples` and `/stats`."""
    router = APIRouter(tags=["page"])
    _add_files(router, service)
    _add_model_routes(router, service)
    _add_samples(router, service)

    @router.get("/stats")
    async def stats() -> Stats:
        """Counters since the start, summed over all workers: a short form of `/metrics`."""
        return summarize(service.metrics.collect(), clock_s=time.monotonic(), ready=_is_ready(service))

    return router


def _add_files(router: APIRouter, service: Service) -> None:
    """Serve the page's few files from memory, so that no request ever reaches a file system."""
    folder = importlib.resources.files("cpt_serving") / "static"
    files = {
        entry.name: (entry.read_bytes(), _MEDIA_TYPES[entry.name[entry.name.rindex(".") :]])
        for entry in folder.iterdir()
    }

    async def file(name: str) -> Response:
        if name not in files:
            raise RequestError(404, f"Expected a file of the page, but got {name!r:.100}")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=dict(PAGE_HEADERS))

    async def index() -> Response:
        # The page classifies images: where none can be, the description of the routes is what people look for.
        return RedirectResponse("/docs") if only_language(service) else await file("index.html")

    router.add_api_route("/", index, include_in_schema=False)
    router.add_api_route("/page/{name}", file, include_in_schema=False)


def _add_model_routes(router: APIRouter, service: Service) -> None:
    @router.get("/models")
    async def models() -> ServedModels:
        """Names and versions of the served models."""
        repository = service.repository
        return ServedModels(
            models=[ServedModel(name=name, versions=repository.versions(name)) for name in repository.names]
        )

    @router.get("/evidence", responses={404: {"model": ErrorAnswer}})
    async def evidence(model: ModelName = None) -> Evidence:
        """Who a model is, and what `cpt validate` measured of it."""
        return evidence_of(service.find(model).model, docs=service.settings.docs)


def _add_samples(router: APIRouter, service: Service) -> None:
    @router.get("/samples", responses={404: {"model": ErrorAnswer}})
    async def samples(model: ModelName = None) -> Samples:
        """The inputs of a bundle's golden sample with their classes, and how a drawing resembles them."""
        return service.find_predicting(model).model.samples()

    @router.get(
        "/samples/{index}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, 404: {"model": ErrorAnswer}},
    )
    async def sample(index: Annotated[int, Path(ge=0)], model: ModelName = None) -> Response:
        """A golden input as an image of the model's input size."""
        try:
            image = service.find_predicting(model).model.sample_png(index)
        except IndexError as error:
            raise RequestError(404, f"Expected the number of a sample, but got {index}") from error
        return Response(image, media_type="image/png", headers=dict(PAGE_HEADERS))


def only_language(service: Service) -> bool:
    """Return whether a server that has `/docs` serves language models and no classifier."""
    return service.settings.docs and bool(service.repository.names) and service.repository.predicting is None


def _is_ready(service: Service) -> bool:
    try:
        service.repository.require_ready()
    except NotReadyError:
        return False
    return True
