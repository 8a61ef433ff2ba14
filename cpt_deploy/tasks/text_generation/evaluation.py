"""Losses of a language model on a text, and its perplexity at max_bits."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cpt_deploy.data.text import Chunk
from cpt_deploy.data.text.streams import IGNORED
from cpt_deploy.metric import perplexity_of
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.quantization.stateful import State, call_with_state, carries_state
from cpt_deploy.signature import TOKENS_NAME, Signature
from cpt_deploy.training.distributed.process_group import ALONE, ProcessGroup
from cpt_deploy.training.reporting.reports import Evaluation


def scores_of(
    model: Callable[..., Any], signature: Signature, tokens: Tensor, state: State | None
) -> tuple[Tensor, State | None]:
    """Return the scores of each next token, (N, T, V), and the state for the next chunk of the text.

    Args:
        model: A prepared language model, or its replica.
        signature: Its signature.
        tokens: int64 (N, T).
        state: The state before the tokens; None is the initial one.

    Returns:
        The state is None if each chunk begins with the initial one.
    """
    (scores,), after = call_with_state(model, signature, {TOKENS_NAME: tokens}, state)
    return scores, after if carries_state(signature) else None


def token_losses(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihoods of targets in nats, float32 (n,), and the number of most likely ones, 0-dim.

    Args:
        scores: Logits or log-probabilities, (N, T, V).
        targets: int64 (N, T); `IGNORED` where nothing is predicted.
    """
    flat, wanted = scores.reshape(-1, scores.shape[-1]).float(), targets.reshape(-1)
    losses = functional.cross_entropy(flat, wanted, reduction="none", ignore_index=IGNORED)
    return losses, (flat.detach().argmax(1) == wanted).sum()


@torch.no_grad()
def evaluate_text(
    model: QuantizedModel,
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
    hits, count = torch.zeros((), dtype=torch.int64, device=device), 0
    state: State | None = None
    stopped = False
    model.eval()
    try:
        with model.at_max_bits():
            for chunk in chunks:
                stopped = stop()
                if stopped:
                    break
                scores, state = scores_of(model, model.signature, chunk.tokens.to(device), state)
                losses, right = token_losses(scores, chunk.targets.to(device))
                loss += losses.double().sum()
                hits += right
                count += int((chunk.targets != IGNORED).sum())
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
