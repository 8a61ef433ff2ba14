"""Generating text token by token, and telling how probable a given text is."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cpt_deploy.bundle.language import END, LOGITS_NAME
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.model import Tensors, TextModel
from cpt_serving.inference.sampling import Floats, Sampler, SamplingOptions, log_softmax, most_probable
from cpt_serving.inference.stopping import StopMatcher

FinishReason = Literal["length", "stop"]
"""Why a text ended: as long as asked for or as the context allows, or at a given string."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What shall be generated.

    Args:
        prompt: The tokens that come before, one or more.
        max_tokens: Most tokens to generate.
        sampling: How they are drawn.
        stops: Strings before the first of which the text ends.
        top: How many of the most probable tokens are told at each place.
        arrived: When the request did, in seconds of `time.monotonic`.
        deadline: When the answer is of no use any more, likewise.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingOptions
    stops: Sequence[str] = ()
    top: int = 0
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
    """A token in its place, and the most probable ones there."""

    top: tuple[TokenProbability, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token.

    Args:
        text: What can be given out with it: nothing while characters or strings that end the text are incomplete.
        scored: The token with its probability.
        finish: Why it is the last one, if it is.
    """

    text: str
    scored: ScoredToken
    finish: FinishReason | None = None


async def generate(engine: Engine[TextModel], request: GenerationRequest) -> AsyncGenerator[Piece]:
    """Generate one token after the other; who stops listening stops the generation.

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
            scored = scored_token(engine.model, token, log_probabilities, request.top)
            _tell(engine, times, request.arrived)
            text = stop.add(decode(token))
            finish: FinishReason | None = "stop" if stop.stopped else "length" if count == limit else None
            if finish is None:
                yield Piece(text, scored)
                outputs = await _call(engine, [token], outputs, request.deadline)
                log_probabilities = log_softmax(outputs[LOGITS_NAME][0, -1])
                continue
            if finish == "length":
                text += stop.add(decode(END)) + stop.rest()
            engine.observer.text_finished(count, times[-1] - times[0])
            yield Piece(text, scored, finish)
            return


async def score(
    engine: Engine[TextModel], tokens: Sequence[int], *, top: int = 0, deadline: float | None = None
) -> list[ScoredToken]:
    """Return each token of a text with its probability after those before it; the first has none.

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
            for offset, row in enumerate(log_softmax(outputs[LOGITS_NAME][0])):
                scored.append(scored_token(model, tokens[start + offset + 1], row, top))
    return scored


def scored_token(model: TextModel, token: int, log_probabilities: Floats, top: int) -> ScoredToken:
    """Return a token with its probability and the most probable ones in its place."""
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
    return log_softmax(outputs[LOGITS_NAME][0, -1]), outputs


async def _call(
    engine: Engine[TextModel], tokens: Sequence[int], outputs: Tensors | None, deadline: float | None
) -> Tensors:
    """Return the outputs of a further call of a text, which takes turns with the calls of others."""
    inputs = engine.model.inputs_of(np.array([tokens], np.int64), outputs)
    return (await engine.batcher.submit(inputs, deadline)).outputs


def _limit(model: TextModel, request: GenerationRequest) -> int:
    """Return how many tokens can be generated: the last one needs no place of its own in the context."""
    context = model.manifest.context
    return request.max_tokens if context is None else min(request.max_tokens, context - len(request.prompt) + 1)


def _tell(engine: Engine[TextModel], times: list[float], arrived: float) -> None:
    """Tell the observer of a further token."""
    now = time.monotonic()
    if times:
        engine.observer.next_token(now - times[-1])
    else:
        engine.observer.first_token(now - arrived)
    times.append(now)
