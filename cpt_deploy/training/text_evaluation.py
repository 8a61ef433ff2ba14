"""Perplexity of a model on a text, at its upper bound."""

import math
import time
from collections.abc import Callable, Iterator

import torch

from cpt_deploy.data.text import Chunk
from cpt_deploy.quantization import QuantizedLanguageModel
from cpt_deploy.training.reports import Evaluation


@torch.no_grad()
def evaluate_text(
    model: QuantizedLanguageModel,
    chunks: Iterator[Chunk],
    *,
    device: torch.device,
    step: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate a model at the upper bound, in float32, whatever it trains in.

    Args:
        model: The model; its mode and bits are restored afterwards.
        chunks: From `evaluation_chunks`.
        device: Where the model is.
        step: Number of finished steps, for the result.
        stop: Asked before each chunk whether to give up.

    Returns:
        The evaluation, or `None` if `stop` said so.
    """
    began, training = time.perf_counter(), model.training
    loss = torch.zeros((), dtype=torch.float64, device=device)
    hits, count, state = torch.zeros((), dtype=torch.int64, device=device), 0, None
    model.eval()
    try:
        with model.upper_bound():
            for chunk in chunks:
                if stop():
                    return None
                score = model.score(chunk.tokens.to(device), chunk.targets.to(device), state)
                state = score.state if model.carries_state else None
                loss += score.losses.double().sum()
                hits += score.hits
                count += score.targets
    finally:
        model.train(training)
    mean = float(loss) / count
    return Evaluation(
        step=step,
        loss=mean,
        top1=float(hits) / count,
        top5=None,
        images=count,
        seconds=time.perf_counter() - began,
        perplexity=perplexity_of(mean),
    )


def perplexity_of(loss: float) -> float:
    """Return exp of a mean negative log-likelihood in nats; infinite where float64 holds no such number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
