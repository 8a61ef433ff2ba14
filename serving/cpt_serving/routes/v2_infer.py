"""The inference routes of the Open Inference Protocol, and middleware that answers them faster than the framework."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from cpt_deploy.errors import CptError
from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import AccessControl, requires
from cpt_serving.adapters import Adapter
from cpt_serving.adapters.description import model_metadata
from cpt_serving.answering import InferCall, infer
from cpt_serving.inference.engine import Engine
from cpt_serving.oip.answers import Answer, render_answer
from cpt_serving.oip.requests import HEADER_LENGTH, header_length, parse_request, raw_request
from cpt_serving.oip.schemas import InferAnswer, InferRequest
from cpt_serving.routes.examples import HEADERS, infer_body
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import INLINE_BYTES, running_body, too_large
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.errors import RequestError, error_answer
from cpt_serving.web.schemas import error_answers

PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
"""Paths of a model, without and with version."""

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"

_ERRORS = (400, 404, 408, 413, 415, 429, 503, 504)
_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_ROUTES = tuple(SimpleNamespace(path=f"{path}/infer") for path in PATHS)


def infer_router(service: Service) -> APIRouter:
    """Return the inference routes, with and without version."""
    router = APIRouter(tags=["Open Inference Protocol v2"], dependencies=[requires(Scope.INFER)])

    async def infer_newest(model: str) -> Response:
        """Compute a model's outputs.

        The metadata of the model lists its inputs, whose first dimension is the batch; those of real numbers may be
        FP32, FP64 or FP16. States that are not sent are the initial ones. An image classifier also takes pixels of any
        size as UINT8, N x H x W x C, and image files as BYTES, which are preprocessed as in `/predict`. Tensors are in
        the JSON or follow it as bytes. Parameters of the request: `timeout` in microseconds, `binary_data_output`; of
        an output: `binary_data`, and `classification`, the number of classes to return with labels.
        """
        return await answer_infer(service, service.find(model))

    async def infer_by_version(model: str, version: str) -> Response:
        """Compute the outputs of one version of a model."""
        return await answer_infer(service, service.find(model, version))

    endpoints: tuple[Callable[..., Any], ...] = (infer_newest, infer_by_version)
    for path, endpoint in zip(PATHS, endpoints, strict=True):
        router.add_api_route(
            f"{path}/infer",
            endpoint,
            methods=["POST"],
            response_model=InferAnswer,
            responses={
                200: {"content": {BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
                **error_answers(*_ERRORS),
            },
            openapi_extra={"requestBody": infer_body(service), "parameters": HEADERS},
        )
    return router


class DirectInfer:
    """ASGI middleware that answers `infer` before the framework, whose layers cost more than small models.

    It needs the same key as the route, which remains for `/docs`, for mounted apps and for requests with a query.

    Args:
        app: The inner app, which answers all other requests.
        service: The service with the models.
        access: Checks the API key.
    """

    def __init__(self, app: ASGIApp, service: Service, access: AccessControl) -> None:
        self._app = app
        self._service = service
        self._access = access

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer a request for inference, or pass any other on."""
        found = None
        if (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and not (scope["query_string"] or scope.get("root_path"))
        ):
            found = _PATH.fullmatch(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        model, version = found.groups()
        scope["route"] = _ROUTES[version is not None]
        try:
            self._access.check(scope["headers"], Scope.INFER)
            response = await answer_infer(self._service, self._service.find(model, version))
        except (RequestError, CptError) as error:
            response = error_answer(error)
        await response(scope, receive, send)


async def answer_infer(service: Service, engine: Engine[Adapter]) -> Response:
    """Answer a request for inference with an engine.

    Raises:
        RequestError: If it cannot be answered as asked.
        ServingError: If the queue is full, the model is not loaded, or the deadline passed.
    """
    body, json_bytes = await _read(service.settings)

    def deadline(timeout_us: int) -> float | None:
        return request_deadline(service.settings, timeout_us=timeout_us)

    heavy = (len(body) if json_bytes is None else json_bytes) > INLINE_BYTES

    def parse() -> InferRequest:
        if json_bytes == 0:
            return raw_request(body, model_metadata(engine.bundle))
        return parse_request(body, json_bytes)

    return _InferResponse(await infer(engine, InferCall(parse, heavy, deadline, render_answer)))


async def _read(settings: ServeSettings) -> tuple[bytes, int | None]:
    """Return the decompressed body, and the number of bytes of JSON, if it is stated."""
    found = running_body()
    json_bytes = header_length(found.headers)
    body = await found.read(settings.max_json_bytes if json_bytes is None else settings.max_body_bytes)
    if json_bytes is not None and settings.max_json_bytes < json_bytes <= len(body):
        raise too_large(settings.max_json_bytes, f"{json_bytes} bytes of JSON")
    return body, json_bytes


class _InferResponse(Response):
    """An answer with directly written headers; Starlette's handling of them takes longer than the JSON."""

    def __init__(self, answer: Answer) -> None:
        self.status_code, self.background, self.body = 200, None, answer.body
        self.raw_headers = [(b"content-length", b"%d" % len(answer.body))]
        if answer.json_bytes is None:
            self.raw_headers.append((b"content-type", JSON_TYPE.encode()))
        else:
            length = (HEADER_LENGTH.lower().encode(), b"%d" % answer.json_bytes)
            self.raw_headers += [(b"content-type", BINARY_TYPE.encode()), length]
