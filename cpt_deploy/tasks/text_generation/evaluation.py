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
from cpt_deploy.training.evaluation import summed
from cpt_deploy.training.reports import Evaluation


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
    began = time.perf_counter()
    state: State | None = None

    def measured(chunk: Chunk) -> tuple[Tensor, ...]:
        nonlocal state
        scores, state = scores_of(model, model.signature, chunk.tokens.to(device), state)
        targets = chunk.targets.to(device)
        losses, hits = token_losses(scores, targets)
        return losses.double().sum(), hits, (targets != IGNORED).sum()

    sums = summed(model, chunks, measured, 3, device=device, stop=stop, process_group=process_group)
    if sums is None:
        return None
    loss, top1, targets = sums
    mean = loss / targets
    return Evaluation(
        step=step,
        loss=mean,
        metrics={"accuracy": top1 / targets, "perplexity": perplexity_of(mean)},
        samples=int(targets),
        seconds=time.perf_counter() - began,
    )
