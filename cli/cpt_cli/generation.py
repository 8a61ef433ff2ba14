"""Generating text with a bundle in this process, or on a server. Both yield the same events."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.errors import UsageError


@dataclass(frozen=True)
class TextOptions:
    """Options of text generation; see `cpt_serving.routes.generation_schemas`."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: tuple[str, ...] = ()


def local_text(path: Path, prompt: str, options: TextOptions, *, threads: int | None) -> Iterator[dict[str, Any]]:
    """Generate with a bundle in this process.

    Raises:
        BundleError: If the bundle is missing or damaged.
        UsageError: If its model does not continue texts, or the prompt is longer than its context.
    """
    import asyncio

    from cpt_deploy.bundle import Bundle
    from cpt_serving.adapters import adapter_of
    from cpt_serving.inference.engine import Engine
    from cpt_serving.inference.generation import GenerationRequest, text_events
    from cpt_serving.inference.memory import MemoryBudget
    from cpt_serving.inference.model import TextModel
    from cpt_serving.inference.observers import ModelObserver
    from cpt_serving.inference.sampling import SamplingOptions
    from cpt_serving.inference.threads import Threads
    from cpt_serving.settings import local_settings

    settings = local_settings(path, threads)
    bundle = Bundle.open(path)
    model = adapter_of(bundle, settings, MemoryBudget(settings.decode_bytes))
    if not isinstance(model, TextModel):
        raise UsageError(f"Expected a model that continues texts in {path}, but its task is {bundle.task}")
    request = GenerationRequest(
        prompt=model.tokens_of(prompt) or list(model.text.start),
        max_tokens=options.max_tokens,
        sampling=SamplingOptions(options.temperature, options.top_k, options.top_p, options.seed),
        stops=options.stop,
        arrived=time.monotonic(),
    )
    compute = Threads(1, "compute")
    engine: Engine[TextModel] = Engine(model, settings, compute, compute, ModelObserver())
    engine.load_now()
    with asyncio.Runner() as runner:
        events = text_events(engine, request)
        while (event := runner.run(anext(events, None))) is not None:
            yield event


def remote_text(url: str, prompt: str, options: TextOptions, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Generate on a server.

    Raises:
        UsageError: If the address is invalid, or the server rejects the request as invalid.
        DataError: If the server cannot be reached.
    """
    from cpt_serving.client import PredictClient

    with PredictClient(url, headers=headers) as client:
        yield from client.generate(prompt, **asdict(options))
