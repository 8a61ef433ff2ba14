"""Chunks of text: of parallel rows for training with carried state, and of all tokens once for evaluation.

Training follows Zaremba et al., 2014: the text is cut into as many rows of equal length as a batch has, and a step
reads the next few tokens of all rows, so that the state at the end of one step is where the next begins. Evaluation
predicts every token of the text but the first exactly once, whatever the number of rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpt_deploy.bundle.processors.tokenization import Ids
from cpt_deploy.data.batches import WHOLE, Share
from cpt_deploy.errors import DataError

IGNORED = -100
"""The target where there is nothing to predict, as `torch.nn.functional.cross_entropy` has it."""


class Chunk(NamedTuple):
    """What a step reads.

    Args:
        tokens: int64 (N, T).
        targets: The tokens that follow, int64 (N, T); `IGNORED` where none is to be predicted.
        first: Whether the rows begin here, so that no state is carried into it.
    """

    tokens: Tensor
    targets: Tensor
    first: bool


def training_rows(ids: Ids, rows: int) -> Ids:
    """Return the text as rows of equal length, int32 (rows, L); the remainder at its end is left out.

    Raises:
        DataError: If there are fewer than two tokens for each row.
    """
    length = len(ids) // rows
    if length < 2:
        raise DataError(
            f"Expected at least 2 training tokens for each of {rows} rows, but got {len(ids)} tokens",
            hint="lower train.batch_size",
        )
    return ids[: rows * length].reshape(rows, length)


def steps_per_epoch(rows: Ids, length: int) -> int:
    """Return how many chunks of at most `length` tokens a pass over the rows has."""
    return -(-(int(rows.shape[1]) - 1) // length)


def training_chunk(rows: Ids, length: int, number: int) -> Chunk:
    """Return one chunk, numbered through all epochs; the last one of an epoch may be shorter.

    Args:
        rows: From `training_rows`.
        length: Tokens of each row that a step reads.
        number: From 0.
    """
    position = number % steps_per_epoch(rows, length)
    first, last = position * length, min((position + 1) * length, rows.shape[1] - 1)
    tokens, targets = (torch.from_numpy(rows[:, start:end].astype(np.int64)) for start, end in _shifted(first, last))
    return Chunk(tokens, targets, position == 0)


def evaluation_chunks(ids: Ids, rows: int, length: int, context: int = 0, share: Share = WHOLE) -> Iterator[Chunk]:
    """Yield the whole text in parallel rows; every token but the first is a target once.

    Args:
        ids: The text, int32 (n,).
        rows: Number of rows, fewer if the text is short; each begins with an empty state.
        length: Tokens of a row whose successors a chunk predicts.
        context: Tokens before them that a chunk repeats without predicting anything, for models that carry no state.
        share: Which of the rows a process of a distributed run has; there may be none.

    Raises:
        DataError: If there are fewer than two tokens.
    """
    predicted = len(ids) - 1
    if predicted < 1:
        raise DataError(f"Expected at least 2 tokens to evaluate on, but got {len(ids)}")
    rows = min(rows, predicted)
    each = -(-predicted // rows)
    padding = rows * each - predicted
    tokens = np.pad(ids[:-1].astype(np.int64), (0, padding)).reshape(rows, each)
    targets = np.pad(ids[1:].astype(np.int64), (0, padding), constant_values=IGNORED).reshape(rows, each)
    tokens, targets = (part[share.of(rows)] for part in (tokens, targets))
    for first in range(0, each if len(tokens) else 0, length):
        begin, last = max(first - context, 0), min(first + length, each)
        wanted = targets[:, begin:last].copy()
        wanted[:, : first - begin] = IGNORED
        yield Chunk(torch.from_numpy(tokens[:, begin:last]), torch.from_numpy(wanted), first == 0)


def _shifted(first: int, last: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (first, last), (first + 1, last + 1)
