"""Cut text into chunks: parallel rows for training with a carried state, and each token once for evaluation.

Training follows Zaremba et al., 2014: the text is cut into one row per batch element, all of equal length, and a step
reads the next few tokens of all rows, so that the state at the end of one step is where the next begins. Evaluation
predicts every token of the text but the first exactly once, for any number of rows.
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
"""The target where there is nothing to predict, the `ignore_index` of `torch.nn.functional.cross_entropy`."""


class Chunk(NamedTuple):
    """The tokens and targets of one step.

    Args:
        tokens: int64 (N, T).
        targets: The tokens that follow, int64 (N, T); `IGNORED` where nothing is predicted.
        first: Whether the rows begin with this chunk, so that no state is carried into it.
    """

    tokens: Tensor
    targets: Tensor
    first: bool


def training_rows(ids: Ids, rows: int) -> Ids:
    """Return the text as rows of equal length, int32 (rows, L), without the remainder at its end.

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
    """Return the number of chunks of at most `length` tokens in one pass over the rows."""
    return -(-(int(rows.shape[1]) - 1) // length)


def training_chunk(rows: Ids, length: int, number: int) -> Chunk:
    """Return one training chunk; the last chunk of an epoch may be shorter.

    Args:
        rows: From `training_rows`.
        length: Number of tokens of each row that a step reads.
        number: Number of the chunk, counted from 0 over all epochs.
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
        length: Number of tokens of a row whose successors a chunk predicts.
        context: Number of tokens before them that a chunk repeats without targets, for models that carry no state.
        share: The part of the rows for one process of a distributed run; it may be empty.

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
