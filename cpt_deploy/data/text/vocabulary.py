"""Build the vocabulary of a corpus from its training text."""

import hashlib
from collections import Counter
from typing import Literal

from cpt_deploy.bundle.processors.tokenization import (
    END,
    UNKNOWN,
    ByteTokenizer,
    Ids,
    Tokenizer,
    WordTokenizer,
    lines_of,
    split_words,
    train_bpe,
)
from cpt_deploy.errors import UsageError

Level = Literal["word", "byte", "bpe"]
DEFAULT_BPE_SIZE = 8000


def build_tokenizer(text: str, level: Level, size: int | None = None) -> Tokenizer:
    """Build the tokenizer of a training text.

    Words are numbered by descending frequency (equally frequent ones by their first occurrence), as adaptive softmax
    requires; `<eos>` and `<unk>` are counted like other words, and are added if the text does not contain them.

    Args:
        text: The training text.
        level: The kind of token.
        size: Size of the vocabulary. Words: the maximum, without the rarest words; None keeps all. Byte-pair encoding:
            the number of tokens; None is 8000. Bytes are always 256.

    Raises:
        UsageError: If the size is too small for the level, or given for bytes.
        MissingExtraError: If byte-pair encoding is chosen and the `tokenizers` library is not installed.
    """
    if level == "byte":
        if size is not None:
            raise UsageError(f"Expected no data.text.vocabulary_size for bytes, which are 256, but got {size}")
        return ByteTokenizer()
    if level == "bpe":
        return train_bpe(lines_of(text), DEFAULT_BPE_SIZE if size is None else size)
    return WordTokenizer(_frequent_words(text, size))


def _frequent_words(text: str, size: int | None) -> list[str]:
    counts = Counter(split_words(text))
    words = [word for word, _ in counts.most_common()]  # stable: equally frequent words keep their order
    special = [token for token in (END, UNKNOWN) if token not in counts]
    if size is None:
        return words + special
    if size < 2:
        raise UsageError(f"Expected a vocabulary of at least {END} and {UNKNOWN}, but got a size of {size}")
    kept = [word for word in words if word in (END, UNKNOWN)] + special
    others = [word for word in words if word not in (END, UNKNOWN)][: max(size - len(kept), 0)]
    chosen = {*kept, *others}
    return [word for word in words if word in chosen] + special


def token_digest(ids: Ids) -> str:
    """Return the SHA-256 of tokens, hexadecimal, as report.json says it."""
    return hashlib.sha256(ids.tobytes()).hexdigest()
