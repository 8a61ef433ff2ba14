"""Generating text with a bundle in this process, or on a server. Both yield the same events."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.errors import UsageError


@dataclass(frozen=True)
class TextOptions:
    """Options of text generation; see `cpt_serving.web.generation_schemas`."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: tuple[str, ...] = ()


def local_text(path: Path, prompt: str, options: TextOptions, *, threads: int | None) -> Iterator[dict[str, Any]]:
    """Generate with a bundle in this process.

    Raises:
        BundleError: If the bundle is missing, damaged, or not a language model.
        UsageError: If the prompt is longer than the model's context.
    """
    import numpy as np

    from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, TextProcessor, next_states
    from cpt_deploy.bundle.processors.text_processor import END, context_of
    from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME
    from cpt_serving.inference.sampling import Sampler, SamplingOptions, log_softmax
    from cpt_serving.inference.stopping import StopMatcher

    bundle = Bundle.open(path)
    processor = bundle.expect_processor(TextProcessor)
    model = OnnxRuntimeModel(bundle.onnx_path, bundle.signature, threads=threads)
    tokens = processor.encode(prompt) or list(processor.start)
    context, limit = context_of(bundle.signature), options.max_tokens
    if context is not None:
        if len(tokens) > context:
            raise UsageError(
                f"Expected a prompt of at most {context} tokens, the model's context, but got {len(tokens)}"
            )
        limit = min(limit, context - len(tokens) + 1)
    sampler = Sampler(SamplingOptions(options.temperature, options.top_k, options.top_p, options.seed))
    stop, decode = StopMatcher(options.stop), processor.decoder(tokens)
    outputs = model.run({TOKENS_NAME: np.array([tokens], np.int64)})
    started = time.monotonic()
    for count in range(1, limit + 1):
        token = sampler.draw(log_softmax(outputs[OUTPUT_NAME][0, -1]))
        text = stop.add(decode(token))
        if not stop.stopped and count < limit:
            yield {"text": text}
            states = next_states(bundle.signature, outputs)
            outputs = model.run({TOKENS_NAME: np.array([[token]], np.int64), **states})
            continue
        if not stop.stopped:
            text += stop.add(decode(END)) + stop.rest()
        seconds = time.monotonic() - started
        yield {
            "model": bundle.name,
            "version": bundle.version,
            "text": text,
            "finish_reason": "stop" if stop.stopped else "length",
            "seed": options.seed,
            "usage": {"prompt_tokens": len(tokens), "generated_tokens": count},
            "timings": {"tokens_per_s": round((count - 1) / seconds, 1) if count > 1 and seconds > 0 else None},
        }
        return


def remote_text(url: str, prompt: str, options: TextOptions, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Generate on a server.

    Raises:
        UsageError: If the address is invalid, or the server rejects the request as invalid.
        DataError: If the server cannot be reached.
    """
    from cpt_serving.client import PredictClient

    with PredictClient(url, headers=headers) as client:
        yield from client.generate(prompt, **asdict(options))
