"""The inference routes of the Open Inference Protocol, the only ones before the framework."""

import inspect
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from cpt_deploy.errors import CptError
from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import AccessControl, Guard
from cpt_serving.adapters import Adapter
from cpt_serving.adapters.description import model_metadata
from cpt_serving.answering import InferCall, infer
from cpt_serving.inference.engine import Engine
from cpt_serving.oip.answers import Answer, render_answer
from cpt_serving.oip.requests import HEADER_LENGTH, header_length, parse_request, raw_request
from cpt_serving.oip.schemas import InferAnswer, InferRequest, inline_schema
from cpt_serving.routes.examples import HEADERS, infer_body
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import INLINE_BYTES, running_body, too_large
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.errors import RequestError, error_answer

PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
"""Paths of a model, without and with version."""

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"

_ERRORS = (400, 404, 408, 413, 415, 429, 503, 504)


def infer_routes(service: Service, access: AccessControl) -> list[Route]:
    """Return the inference routes, with and without version.

    They stand before the framework, whose conversion of parameters, errors and answers costs more than small models.
    """
    endpoint = _Infer(service, access)
    return [Route(f"{path}/infer", endpoint) for path in PATHS]


def infer_paths(service: Service) -> dict[str, Any]:
    """Return the OpenAPI description of the routes, by path."""
    errors = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    answers = {
        JSON_TYPE: {"schema": inline_schema(InferAnswer)},
        BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}},
    }
    operation = {
        "tags": ["Open Inference Protocol v2"],
        "summary": "Infer",
        "description": inspect.cleandoc(_Infer.__doc__ or ""),
        "requestBody": infer_body(service),
        "responses": {
            "200": {"description": "Successful Response", "content": answers},
            **{str(status): {"description": HTTPStatus(status).phrase, "content": errors} for status in _ERRORS},
        },
    }
    return {
        f"{path}/infer": {
            "post": {
                **operation,
                "parameters": [
                    *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
                    *HEADERS,
                ],
            }
        }
        for path, names in zip(PATHS, (("model",), ("model", "version")), strict=True)
    }


class _Infer:
    """Compute the outputs of a model.

    The metadata of the model lists its inputs, whose first dimension is the batch; those of real numbers may be FP32,
    FP64 or FP16. Without states they are the initial ones. An image classifier also takes pixels of any size as UINT8,
    N x H x W x C, and image files as BYTES, which are preprocessed as in `/predict`. Tensors are in the JSON or follow
    it as bytes. Parameters of the request: `timeout` in microseconds, `binary_data_output`; of an output:
    `binary_data`, and `classification`, the number of classes to return with labels.
    """

    guard = Guard(Scope.INFER)

    def __init__(self, service: Service, access: AccessControl) -> None:
        self._service, self._access = service, access

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            self.guard.check(self._access, scope)
            if scope["method"] != "POST":
                raise RequestError(405, f"Expected POST, but got {scope['method']}", {"Allow": "POST"})
            response = await answer_infer(self._service, self._service.find(**scope["path_params"]))
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
