"""Evaluate the perplexity of a model on a text, at max_bits."""

import math
import time
from collections.abc import Callable, Iterator

import torch

from cpt_deploy.data.text import Chunk
from cpt_deploy.quantization import QuantizedLanguageModel
from cpt_deploy.training.distributed.process_group import ALONE, ProcessGroup
from cpt_deploy.training.reporting.reports import Evaluation


@torch.no_grad()
def evaluate_text(
    model: QuantizedLanguageModel,
    chunks: Iterator[Chunk],
    *,
    device: torch.device,
    step: int = 0,
    stop: Callable[[], bool] = lambda: False,
    process_group: ProcessGroup = ALONE,
) -> Evaluation | None:
    """Evaluate a model at max_bits, in float32 whatever its training dtype.

    Args:
        model: The model; its mode and bits are restored afterwards.
        chunks: From `evaluation_chunks`; in a distributed run this process's own rows.
        device: Device of the model.
        step: Number of finished steps, for the result.
        stop: Called before each chunk; if it returns true, evaluation stops.
        process_group: The processes that evaluate together, each of which must call this.

    Returns:
        The evaluation of the rows of all processes, or `None` if `stop` returned true in one of them.
    """
    began, training = time.perf_counter(), model.training
    loss = torch.zeros((), dtype=torch.float64, device=device)
    hits, count, state = torch.zeros((), dtype=torch.int64, device=device), 0, None
    stopped = False
    model.eval()
    try:
        with model.at_max_bits():
            for chunk in chunks:
                stopped = stop()
                if stopped:
                    break
                score = model.score(chunk.tokens.to(device), chunk.targets.to(device), state)
                state = score.state
                loss += score.losses.double().sum()
                hits += score.hits
                count += score.targets
    finally:
        model.train(training)
    gathered = process_group.gather(torch.tensor([float(loss), float(hits), count, stopped], dtype=torch.float64))
    loss_sum, top1, targets, stopped_in = gathered.sum(dim=0).tolist()
    if stopped_in:
        return None
    mean = loss_sum / targets
    return Evaluation(
        step=step,
        loss=mean,
        metrics={"accuracy": top1 / targets, "perplexity": perplexity_of(mean)},
        samples=int(targets),
        seconds=time.perf_counter() - began,
    )


def perplexity_of(loss: float) -> float:
    """Return exp of a mean negative log-likelihood in nats; infinity if it overflows float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
