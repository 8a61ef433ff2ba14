"""The page at `/` for trying the models, and the JSON that it reads: models, evidence, samples, statistics."""

import importlib.resources
import time
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.adapters.samples import Samples
from cpt_serving.evidence import Evidence, evidence_of
from cpt_serving.inference.errors import NotReadyError, ServingError
from cpt_serving.routes.files import FILE_HEADERS, files_router, read_folder
from cpt_serving.service import Service
from cpt_serving.telemetry.stats import Stats, summarize
from cpt_serving.web.errors import RequestError
from cpt_serving.web.schemas import ServedModel, ServedModels, error_answers

PAGE_HEADERS: Mapping[str, str] = {
    # No inline code, no other origins; previews of chosen files are blobs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    **FILE_HEADERS,
}

_ERRORS = (400, 404, 503)

ModelName = Annotated[str | None, Query(description="name of the model, if several are served")]


def page_router(service: Service) -> APIRouter:
    """Return the routes of the page: `/`, `/page/...`, `/models`, `/evidence`, `/samples` and `/stats`."""
    files = read_folder(importlib.resources.files("cpt_serving") / "static")
    index = files.pop("index.html")
    pages = APIRouter(dependencies=[requires(None, any_query=True)])

    @pages.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(index, media_type="text/html", headers=dict(PAGE_HEADERS))

    router = APIRouter(tags=["page"], dependencies=[requires(Scope.INFER)])
    _add_model_routes(router, service)
    _add_samples(router, service)

    @router.get("/stats")
    async def stats() -> Stats:
        """Counters since the start, a short form of `/metrics`."""
        return summarize(service.metrics.samples(), clock_s=time.monotonic(), ready=_is_ready(service))

    everything = APIRouter()
    for part in (pages, files_router("/page", files), router):
        everything.include_router(part)
    return everything


def _add_model_routes(router: APIRouter, service: Service) -> None:
    @router.get("/models")
    async def models() -> ServedModels:
        """Names and versions of the served models, and the form of the page for each."""
        repository = service.repository
        return ServedModels(
            models=[
                ServedModel(name=name, versions=repository.models.versions(name), form=_form(service, name))
                for name in repository.models.names
            ]
        )

    @router.get("/evidence", responses=error_answers(*_ERRORS))
    def evidence(model: ModelName = None) -> Evidence:
        """Identity of a model, and the figures of `cpt validate` so far."""
        return evidence_of(service.find(model).model, docs=service.settings.docs)


def _add_samples(router: APIRouter, service: Service) -> None:
    @router.get("/samples", responses=error_answers(*_ERRORS))
    async def samples(model: ModelName = None) -> Samples:
        """Inputs of a bundle's golden sample: a row of tensors, or images with their classes."""
        return service.find(model).model.samples()

    @router.get(
        "/samples/{index}.png",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **error_answers(*_ERRORS)},
    )
    async def sample(index: Annotated[int, Path(ge=0)], model: ModelName = None) -> Response:
        """A golden input as an image of the model's input size."""
        try:
            image = service.find(model).model.sample_png(index)
        except IndexError as error:
            raise RequestError(404, f"Expected the number of a sample, but got {index}") from error
        return Response(image, media_type="image/png", headers=dict(PAGE_HEADERS))


def _form(service: Service, name: str) -> str | None:
    try:
        return service.find(name).model.form
    except ServingError:
        return None


def _is_ready(service: Service) -> bool:
    try:
        service.repository.models.require_ready()
    except NotReadyError:
        return False
    return True
