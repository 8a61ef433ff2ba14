"""Generating text token by token, and scoring the probability of a given text."""

import functools
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.processors.text_processor import END
from cpt_deploy.signature import OUTPUT_NAME
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.model import Tensors, TextModel
from cpt_serving.inference.sampling import Floats, Sampler, SamplingOptions, log_softmax, most_probable
from cpt_serving.inference.stopping import StopMatcher
from cpt_serving.inference.threads import Work

FinishReason = Literal["length", "stop"]
"""Reason for the end of a text: the length requested or allowed by the context, or a stop string."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to generate text.

    Args:
        prompt: Tokens to continue, one or more.
        max_tokens: Maximum tokens to generate.
        sampling: Options of sampling.
        stops: Stop strings: the text ends before the first of them.
        top: Number of most probable tokens to report at each place; None reports no probabilities in events.
        arrived: Time of arrival, in seconds of `time.monotonic`.
        deadline: Time after which the answer is useless, likewise.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingOptions
    stops: Sequence[str] = ()
    top: int | None = None
    arrived: float = 0.0
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token and the natural logarithm of its probability, before temperature and limits; `None` if unknown."""

    token: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class ScoredToken(TokenProbability):
    """A token of a text, and the most probable tokens at its place."""

    top: tuple[TokenProbability, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token.

    Args:
        text: Text completed by the token; empty while a character or a possible stop string is incomplete.
        scored: The token with its probability.
        finish: Reason for the end of the text, if this is the last token.
    """

    text: str
    scored: ScoredToken
    finish: FinishReason | None = None


async def generate(engine: Engine[TextModel], request: GenerationRequest) -> AsyncGenerator[Piece]:
    """Generate tokens one by one; closing the generator stops the generation.

    Raises:
        QueueFullError: If too many texts are under way.
        NotReadyError: If the model is not loaded.
        DeadlineExceededError: If the deadline passed.
    """
    with engine.admit_text():
        prompt = list(request.prompt)
        log_probabilities, outputs = await _read(engine, prompt, request.deadline)
        sampler, stop = Sampler(request.sampling), StopMatcher(request.stops)
        decode = engine.model.text.decoder(prompt)
        limit = _limit(engine.model, request)
        times: list[float] = []
        for count in range(1, limit + 1):
            token = sampler.draw(log_probabilities)
            scored = scored_token(engine.model, token, log_probabilities, request.top or 0)
            _tell(engine, times, request.arrived)
            text = stop.add(decode(token))
            finish: FinishReason | None = "stop" if stop.stopped else "length" if count == limit else None
            if finish is None:
                yield Piece(text, scored)
                outputs = await _call(engine, [token], outputs, request.deadline)
                log_probabilities = log_softmax(outputs[OUTPUT_NAME][0, -1])
                continue
            if finish == "length":
                text += stop.add(decode(END)) + stop.rest()
            engine.observer.text_finished(count, times[-1] - times[0])
            yield Piece(text, scored, finish)
            return


async def text_events(engine: Engine[TextModel], request: GenerationRequest) -> AsyncGenerator[dict[str, Any]]:
    """Generate text as JSON types: for each token the text that it completes, with the last one a summary.

    Raises:
        ServingError: Like `generate`.
    """
    first, count = 0.0, 0
    async with aclosing(generate(engine, request)) as pieces:
        async for piece in pieces:
            now, count = time.monotonic(), count + 1
            first = first or now
            event: dict[str, Any] = {"text": piece.text}
            if request.top is not None:
                event["logprobs"] = [piece.scored]
            if piece.finish is None:
                yield event
                continue
            yield {
                "model": engine.bundle.name,
                "version": engine.bundle.version,
                **event,
                "finish_reason": piece.finish,
                "seed": request.sampling.seed,
                "usage": {"prompt_tokens": len(request.prompt), "generated_tokens": count},
                "timings": {
                    "first_token_ms": round((first - request.arrived) * 1e3, 3),
                    "total_ms": round((now - request.arrived) * 1e3, 3),
                    "tokens_per_s": round((count - 1) / (now - first), 1) if count > 1 and now > first else None,
                },
            }


async def score(
    engine: Engine[TextModel], tokens: Sequence[int], *, top: int = 0, deadline: float | None = None
) -> list[ScoredToken]:
    """Return each token of a text with its probability given the tokens before it; the first has none.

    Raises:
        QueueFullError: If too many texts are under way.
        NotReadyError: If the model is not loaded.
        DeadlineExceededError: If the deadline passed.
    """
    model = engine.model
    scored = [ScoredToken(tokens[0], model.text.token_text(tokens[0]), None)]
    with engine.admit_text():
        outputs: Tensors | None = None
        for start in range(0, len(tokens) - 1, model.chunk):
            part = tokens[start : min(start + model.chunk, len(tokens) - 1)]
            outputs = await _call(engine, part, outputs, deadline)
            engine.observer.text_read(len(part))
            following = tokens[start + 1 : start + 1 + len(part)]
            logits = outputs[OUTPUT_NAME][0]
            # Of many tokens this takes long; other requests go on meanwhile.
            scored += await engine.decoders.run(functools.partial(_scored, model, following, logits, top), deadline)
    return scored


def _scored(
    model: TextModel, tokens: Sequence[int], logits: npt.NDArray[Any], top: int, _work: Work
) -> list[ScoredToken]:
    return [scored_token(model, *pair, top) for pair in zip(tokens, log_softmax(logits), strict=True)]


def scored_token(model: TextModel, token: int, log_probabilities: Floats, top: int) -> ScoredToken:
    """Return a token with its probability and the most probable tokens at its place."""
    name = model.text.token_text
    best = most_probable(log_probabilities, top) if top else ()
    return ScoredToken(
        token,
        name(token),
        float(log_probabilities[token]),
        tuple(TokenProbability(int(each), name(int(each)), float(log_probabilities[each])) for each in best),
    )


async def _read(engine: Engine[TextModel], prompt: Sequence[int], deadline: float | None) -> tuple[Floats, Tensors]:
    outputs: Tensors | None = None
    for start in range(0, len(prompt), engine.model.chunk):
        part = prompt[start : start + engine.model.chunk]
        outputs = await _call(engine, part, outputs, deadline)
        engine.observer.text_read(len(part))
    assert outputs is not None, "a prompt has a token"
    return log_softmax(outputs[OUTPUT_NAME][0, -1]), outputs


async def _call(
    engine: Engine[TextModel], tokens: Sequence[int], outputs: Tensors | None, deadline: float | None
) -> Tensors:
    """Return the outputs of the next call of a text; calls of several texts are interleaved."""
    inputs = engine.model.inputs_of(np.array([tokens], np.int64), outputs)
    return (await engine.batcher.submit(inputs, deadline)).outputs


def _limit(model: TextModel, request: GenerationRequest) -> int:
    """Return how many tokens can be generated; the last one needs no place in the context."""
    context = model.context
    return request.max_tokens if context is None else min(request.max_tokens, context - len(request.prompt) + 1)


def _tell(engine: Engine[TextModel], times: list[float], arrived: float) -> None:
    """Report a further token to the observer."""
    now = time.monotonic()
    if times:
        engine.observer.next_token(now - times[-1])
    else:
        engine.observer.first_token(now - arrived)
    times.append(now)
