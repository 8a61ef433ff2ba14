"""Inference by the Open Inference Protocol: the path that has to be short."""

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from cpt_serving.adapters import Adapter
from cpt_serving.answering import InferCall, infer
from cpt_serving.inference.engine import Engine
from cpt_serving.oip.answers import Answer, render_answer
from cpt_serving.oip.requests import HEADER_LENGTH, InferRequest, header_length, parse_request
from cpt_serving.oip.schemas import InferAnswer
from cpt_serving.routes.body_descriptions import HEADERS, infer_body
from cpt_serving.routes.direct import DirectRoute
from cpt_serving.service import Service
from cpt_serving.web.bodies import read_body
from cpt_serving.web.compression import compress, decompress, preferred_coding
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.raw_headers import raw_header
from cpt_serving.web.schemas import ErrorAnswer

PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
"""Where a model is, and one version of it."""

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"

_ERRORS = (400, 404, 408, 413, 415, 429, 503, 504)
_INLINE_BYTES = 16 * 1024
"""More JSON or compressed bytes than these are read in a thread."""


def infer_router(service: Service) -> APIRouter:
    """Return the routes that compute, with and without version."""
    router = APIRouter(tags=["Open Inference Protocol v2"], route_class=DirectRoute)

    async def infer_route(request: Request, model: str, version: str | None = None) -> Response:
        """Compute the logits, or the classes, of inputs.

        The input `image` is FP32 N x C x H x W (also FP64, FP16, BF16): normalised, as the model computes with it. As
        UINT8, N x H x W x C, it is pixels of any size, as BYTES image files; both are preprocessed as in `/predict`.
        Tensors stand in the JSON or follow it as bytes. Parameters: `timeout` in microseconds, `binary_data_output`; of
        the output `binary_data`, and `classification` for the labels of as many classes.
        """
        return await answer_infer(service, request, service.find(model, version))

    for path in PATHS:
        router.add_api_route(
            f"{path}/infer",
            infer_route,
            name="infer",
            methods=["POST"],
            response_model=InferAnswer,
            responses={
                200: {"content": {BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
                **{status: {"model": ErrorAnswer} for status in _ERRORS},
            },
            openapi_extra={"requestBody": infer_body(service.repository.predicting), "parameters": HEADERS},
        )
    return router


async def answer_infer(service: Service, request: Request, engine: Engine[Adapter]) -> Response:
    """Answer a request for inference with an engine.

    Raises:
        RequestError: If it cannot be answered as asked.
        ServingError: If the queue is full, the model is not loaded, or the deadline passed.
    """
    json_bytes = header_length(request.headers)
    body = await read_body(request.receive)
    coding = (raw_header(request.scope, b"content-encoding") or "identity").lower()

    def parse() -> InferRequest:
        limit = service.settings.max_body_bytes
        plain = body if coding == "identity" else decompress(body, coding, limit=limit)
        if json_bytes == 0:
            # A raw request has no JSON, and gets all outputs as bytes.
            return InferRequest([engine.model.raw_input(plain)], binary=True)
        return parse_request(plain, json_bytes)

    def deadline(timeout_us: int) -> float | None:
        return request_deadline(request, service.settings, timeout_us=timeout_us)

    heavy = coding != "identity" or (len(body) if json_bytes is None else json_bytes) > _INLINE_BYTES
    return await _respond(await infer(service, engine, InferCall(parse, heavy, deadline, render_answer)), request)


async def _respond(answer: Answer, request: Request) -> Response:
    accepted = raw_header(request.scope, b"accept-encoding") or ""
    body, headers = answer.body, {}
    if answer.json_bytes is not None:
        headers[HEADER_LENGTH] = str(answer.json_bytes)
    coding = preferred_coding(body, accepted)
    if coding is not None:
        if len(body) <= _INLINE_BYTES:
            body = compress(body, coding)
        else:
            # Not among the decoders: those refuse work when the queue is full, and this request is through.
            body = await anyio.to_thread.run_sync(compress, body, coding)
        headers |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
    return Response(body, headers=headers, media_type=JSON_TYPE if answer.json_bytes is None else BINARY_TYPE)
