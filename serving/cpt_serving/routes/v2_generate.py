"""Triton's generate extension of the protocol: text in and out, as a whole or as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.inference.generation import generate
from cpt_serving.oip.schemas import InferParameters
from cpt_serving.routes.generate import EVENTS_TYPE, json_body, prepare, text_bytes
from cpt_serving.routes.generation_schemas import GenerationParameters, TritonGenerateAnswer, TritonGenerateBody
from cpt_serving.routes.v2_infer import PATHS
from cpt_serving.service import Service
from cpt_serving.web.errors import bad_request
from cpt_serving.web.events import event_response
from cpt_serving.web.json_bodies import checked, read_object
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import BODY_ERRORS, error_answers

_ERRORS = (*BODY_ERRORS, 404, 429, 504)
_OWN_KEYS = ("id", "text_input", "parameters")


def triton_generate_router(service: Service) -> APIRouter:
    """Return `generate` and `generate_stream`, with and without version."""
    router = APIRouter(tags=["Open Inference Protocol v2"], dependencies=[requires(Scope.INFER)])

    async def whole(model: str, version: str | None = None) -> Response:
        """Continue a text (Triton's generate extension); the answer is sent as a whole."""
        async with aclosing(await _events(service, model, version, stream=False)) as events:
            parts = [event async for event in events]
        return JsonResponse({**parts[-1], "text_output": "".join(part["text_output"] for part in parts)})

    async def stream(model: str, version: str | None = None) -> Response:
        """Continue a text (Triton's generate extension); each event has the new text since the previous one."""
        return await event_response(await _events(service, model, version, stream=True))

    example = {"text_input": "the company said", "parameters": {"max_tokens": 20, "temperature": 0}}
    body = json_body(TritonGenerateBody, example)
    errors = error_answers(*_ERRORS)
    events: dict[int | str, dict[str, Any]] = {200: {"content": {EVENTS_TYPE: {"schema": {"type": "string"}}}}}
    for path in PATHS:
        router.add_api_route(
            f"{path}/generate",
            whole,
            methods=["POST"],
            response_model=TritonGenerateAnswer,
            responses=errors,
            openapi_extra=body,
        )
        router.add_api_route(
            f"{path}/generate_stream", stream, methods=["POST"], responses={**events, **errors}, openapi_extra=body
        )
    return router


async def _events(service: Service, model: str, version: str | None, *, stream: bool) -> AsyncGenerator[dict[str, Any]]:
    """Return the answers to a request, one for each token.

    Raises:
        RequestError: 400 with the expectation, 404 for an unknown model.
    """
    engine = service.find_generating(model, version)
    content = await read_object(text_bytes(service.settings))
    given = checked(TritonGenerateBody, {key: content[key] for key in _OWN_KEYS if key in content})
    beside = {key: value for key, value in content.items() if key not in _OWN_KEYS}
    values = {**beside, **(given.parameters or {})}
    timeout = checked(InferParameters, {"timeout": values.pop("timeout", None)}).timeout
    parameters = checked(GenerationParameters, values)
    if parameters.stream and not stream:
        raise bad_request("Expected stream to be false here, but got true: generate_stream gives events")
    wanted = await prepare(service, engine, given.text_input, parameters, timeout_us=timeout)
    head = {} if given.id is None else {"id": given.id}
    head |= {"model_name": engine.bundle.name, "model_version": engine.bundle.version}

    async def events() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(generate(engine, wanted)) as pieces:
            async for piece in pieces:
                yield {**head, "text_output": piece.text}

    return events()
