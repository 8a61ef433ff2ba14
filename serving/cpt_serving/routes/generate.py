"""`/generate` and `/score`: continue a text, as a whole or token by token, and score the probability of a text."""

import math
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.generation import GenerationRequest, score, text_events
from cpt_serving.inference.model import TextModel
from cpt_serving.inference.sampling import SamplingOptions
from cpt_serving.oip.schemas import inline_schema
from cpt_serving.routes.generation_schemas import (
    GenerateAnswer,
    GenerateBody,
    GenerationParameters,
    ScoreAnswer,
    ScoreBody,
)
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.records import note_model
from cpt_serving.web.bodies import charge, running_body
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.errors import bad_request
from cpt_serving.web.events import event_response
from cpt_serving.web.json_bodies import CONTROL_BYTES, checked, read_object
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import BODY_ERRORS, error_answers

_ERRORS = (*BODY_ERRORS, 404, 429, 504)
_PLACES = ("", "/models/{model}", "/models/{model}/versions/{version}")
_RANDOM_SEEDS = 2**32
_BYTES_PER_TOKEN = 32
_BYTES_PER_PROBABILITY = 256
"""Memory of a token with its probability, and of its JSON."""
EVENTS_TYPE = "text/event-stream"

ModelName = Annotated[str | None, Query(description="name of the model, if several are served")]


def generate_router(service: Service) -> APIRouter:
    """Return the routes `/generate` and `/score`, and the same under the name of a model."""
    router = APIRouter(tags=["generate"], dependencies=[requires(Scope.INFER)])

    async def generate_text(model: ModelName = None) -> Response:
        """Continue a text.

        With `stream` the answer is a stream of server-sent events: one for each token, with the text that it
        completes; the last one has the other fields of the answer. Disconnecting ends the generation.
        """
        return await _generate(service, service.find_generating(model))

    async def generate_by(model: str, version: str | None = None) -> Response:
        """Continue a text with the named model, in its newest version or that of the path."""
        return await _generate(service, service.find_generating(model, version))

    async def score_text(model: ModelName = None) -> JsonResponse:
        """Return the probability of each token of a text given those before it, and the text's perplexity."""
        return await _score(service, service.find_generating(model))

    async def score_by(model: str, version: str | None = None) -> JsonResponse:
        """Score a text with the named model, in its newest version or that of the path."""
        return await _score(service, service.find_generating(model, version))

    errors = error_answers(*_ERRORS)
    streamed: dict[str, Any] = {"content": {EVENTS_TYPE: {"schema": {"type": "string"}}}}
    for place in _PLACES:
        router.add_api_route(
            f"{place}/generate",
            generate_by if place else generate_text,
            methods=["POST"],
            response_model=GenerateAnswer,
            responses={200: streamed, **errors},
            openapi_extra=json_body(GenerateBody, {"prompt": "the company said", "max_tokens": 20, "seed": 1}),
        )
        router.add_api_route(
            f"{place}/score",
            score_by if place else score_text,
            methods=["POST"],
            response_model=ScoreAnswer,
            responses=errors,
            openapi_extra=json_body(ScoreBody, {"text": "the company said"}),
        )
    return router


def json_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body."""
    content = {"application/json": {"schema": inline_schema(model), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def text_bytes(settings: ServeSettings) -> int:
    """Return the maximum size of JSON with a text of the maximum number of tokens."""
    return CONTROL_BYTES + _BYTES_PER_TOKEN * settings.max_free_size


async def prepare(
    service: Service,
    engine: Engine[TextModel],
    prompt: str,
    parameters: GenerationParameters,
    *,
    timeout_us: float | None = None,
) -> GenerationRequest:
    """Return the request to the model, checked against the limits of the server and the model.

    Raises:
        RequestError: 400 for a prompt or a number of tokens beyond the limits.
    """
    limit = service.settings.max_new_tokens
    if parameters.max_tokens > limit:
        raise bad_request(f"Expected max_tokens of at most {limit}, but got {parameters.max_tokens}")
    deadline = request_deadline(service.settings, timeout_us=timeout_us)
    tokens = await _tokens(engine, prompt, deadline) or list(engine.model.text.start)
    seed = secrets.randbelow(_RANDOM_SEEDS) if parameters.seed is None else parameters.seed
    return GenerationRequest(
        prompt=tokens,
        max_tokens=parameters.max_tokens,
        sampling=SamplingOptions(parameters.temperature, parameters.top_k, parameters.top_p, seed),
        stops=parameters.stops(),
        top=parameters.logprobs,
        arrived=running_body().arrived,
        deadline=deadline,
    )


async def _tokens(engine: Engine[TextModel], text: str, deadline: float | None) -> list[int]:
    note_model(engine.bundle, rows=1)
    with engine.admit(deadline) as admission:
        return await admission.prepare(lambda _: engine.model.tokens_of(text))


async def _generate(service: Service, engine: Engine[TextModel]) -> Response:
    body = checked(GenerateBody, await read_object(text_bytes(service.settings)))
    events = text_events(engine, await prepare(service, engine, body.prompt, body))
    if body.stream:
        return await event_response(events)
    async with aclosing(events):
        parts = [event async for event in events]
    answer = {**parts[-1], "text": "".join([event["text"] for event in parts])}
    if body.logprobs is not None:
        answer["logprobs"] = [each for event in parts for each in event["logprobs"]]
    return JsonResponse(answer)


async def _score(service: Service, engine: Engine[TextModel]) -> JsonResponse:
    body = checked(ScoreBody, await read_object(text_bytes(service.settings)))
    deadline = request_deadline(service.settings)
    tokens = await _tokens(engine, body.text, deadline)
    if not tokens:
        raise bad_request("Expected a text of one token or more, but got an empty one")
    charge(_BYTES_PER_PROBABILITY * len(tokens) * (body.logprobs + 1))
    scored = await score(engine, tokens, top=body.logprobs, deadline=deadline)

    def answer() -> JsonResponse:
        known = [each.logprob for each in scored if each.logprob is not None]
        return JsonResponse(
            {
                "model": engine.bundle.name,
                "version": engine.bundle.version,
                "tokens": scored,
                "scored_tokens": len(known),
                "logprob": math.fsum(known),
                "perplexity": _perplexity(known),
            }
        )

    return await engine.decoders.run(lambda _: answer(), deadline)


def _perplexity(log_probabilities: Sequence[float]) -> float | None:
    """Return the perplexity of tokens; `None` if there are none, or if it is beyond the numbers of JSON."""
    if not log_probabilities:
        return None
    try:
        return math.exp(-math.fsum(log_probabilities) / len(log_probabilities))
    except OverflowError:
        return None
