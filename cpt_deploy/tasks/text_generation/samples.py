"""Test text as samples of a validation: parallel rows of tokens, read in chunks with carried states."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import TextProcessor
from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.data.text import load_corpus, token_digest
from cpt_deploy.errors import DataError
from cpt_deploy.signature import TOKENS_NAME, Signature
from cpt_deploy.tasks.exporting import dataset_name
from cpt_deploy.validation import Batch, Samples

ROWS = 16
"""Number of parallel rows of the text; each begins with an empty state."""
CHUNK = 32
"""Number of tokens of each row in a batch."""

Tokens = npt.NDArray[np.int64]


def test_samples(
    data: str, root: Path | None, processor: TextProcessor, signature: Signature, limit: int | None
) -> Samples:
    """Return the test text of a corpus as tokens, see `Task.samples`."""
    corpus = load_corpus(data, root)
    tokens = processor.tokenizer.encode(corpus.text("test"))
    return text_samples(dataset_name(data), tokens, signature, limit)


def text_samples(name: str, tokens: npt.NDArray[Any], signature: Signature, limit: int | None = None) -> Samples:
    """Return a text as samples, one for each token but the first of each row.

    Args:
        name: Name of the text.
        tokens: Its tokens.
        signature: Inputs, outputs and states of the model; a limited context begins anew when it is full.
        limit: Number of tokens from the beginning; None is all.

    Raises:
        DataError: If there are fewer than two tokens.
    """
    chosen = tokens if limit is None else tokens[: limit + 1]
    if len(chosen) < 2:
        raise DataError(f"Expected a text of two tokens or more, but got {len(chosen)}")
    rows = rows_of(chosen, ROWS)
    context = context_of(signature)
    batches = partial(_batches, rows, context if signature.states else None, min(CHUNK, context or CHUNK))
    count = rows.size - len(rows)
    size = count if len(chosen) == len(tokens) else len(tokens) - 1
    return Samples(name, "test", token_digest(chosen), size, count, batches)


def rows_of(text: npt.NDArray[np.integer[Any]], rows: int) -> Tokens:
    """Return a text as parallel rows of equal length, int64 (rows, L); the remainder at its end is omitted."""
    rows = max(1, min(rows, len(text) // 2))
    length = len(text) // rows
    return np.ascontiguousarray(text[: rows * length], np.int64).reshape(rows, length)


def _batches(rows: Tokens, context: int | None, chunk: int) -> Iterator[Batch]:
    """Yield chunks of tokens with the tokens that follow them; a limited context begins with an empty state."""
    length = rows.shape[1] - 1
    for first in range(0, length, context or length):
        last = min(first + (context or length), length)
        for start in range(first, last, chunk):
            end = min(start + chunk, last)
            yield Batch({TOKENS_NAME: rows[:, start:end]}, rows[:, start + 1 : end + 1], first=start == first)
