"""Inference over gRPC: messages in and out, and between them the same as over HTTP."""

import time
from typing import Any

from cpt_serving.grpc_api.messages import infer_message, parse_message
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.language_engine import LanguageEngine
from cpt_serving.oip.classifier import classifier_output, classifier_request
from cpt_serving.oip.inputs import is_light, tensor_rows
from cpt_serving.oip.language import LanguageRequest, language_outputs, language_request
from cpt_serving.service import Service
from cpt_serving.settings import ServeSettings
from cpt_serving.web.deadlines import deadline_after


async def model_infer(service: Service, message: Any) -> Any:
    """Compute the logits, or the classes, of images; or those of tokens, and the state that follows.

    Args:
        service: What answers.
        message: A `ModelInferRequest`.

    Returns:
        A `ModelInferResponse`.

    Raises:
        RequestError: If it cannot be answered as asked.
    """
    engine = service.find_any(message.model_name, message.model_version or None)
    if isinstance(engine, LanguageEngine):
        return await _infer_language(service, engine, message)
    if not isinstance(engine, Engine):
        raise TypeError(f"an engine of an unknown kind: {type(engine)}")
    return await _infer_classifier(service, engine, message)


async def _infer_classifier(service: Service, engine: Engine, message: Any) -> Any:
    arrived = time.monotonic()
    parsed = classifier_request(parse_message(message))
    arguments = parsed.tensor, engine.bundle.preprocessing, service.settings
    rows = tensor_rows(*arguments) if is_light(parsed.tensor) else await engine.decode(tensor_rows, *arguments)
    prepared = time.monotonic()
    inference = await engine.infer(rows, deadline=_deadline(arrived, parsed.timeout_us, service.settings))
    computed = time.monotonic()
    output = classifier_output(parsed.output, inference.logits, engine.bundle.labels)
    answer = infer_message(engine.bundle, parsed.id, [output])
    service.statistics.observe(engine.bundle).request_converted(prepared - arrived, time.monotonic() - computed)
    return answer


async def _infer_language(service: Service, engine: LanguageEngine, message: Any) -> Any:
    arrived = time.monotonic()
    bundle, settings = engine.bundle, service.settings

    def parse() -> LanguageRequest:
        return language_request(parse_message(message), bundle.manifest, settings.max_rows)

    parsed = await engine.decode(parse)
    prepared = time.monotonic()
    deadline = _deadline(arrived, parsed.timeout_us, settings)
    logits, state = await engine.infer(parsed.tokens, parsed.state, deadline=deadline)
    computed = time.monotonic()
    outputs = language_outputs(parsed, bundle.manifest, logits, state)
    answer = await engine.decode(infer_message, bundle, parsed.id, outputs)
    service.statistics.observe(bundle).request_converted(prepared - arrived, time.monotonic() - computed)
    return answer


def _deadline(arrived: float, timeout_us: int, settings: ServeSettings) -> float | None:
    return deadline_after(arrived, [timeout_us / 1e6] if timeout_us else [], settings)
