"""Tokenizers of language models: words, bytes, or byte-pair encoding.

A tokenizer is stored as `tokenizer.json`, in the format of the `tokenizers` library, which can open all three kinds.
Words and bytes are implemented here without that library; only byte-pair encoding needs it.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import DataError, MissingExtraError, UsageError

END, UNKNOWN = "<eos>", "<unk>"
FILE_NAME = "tokenizer.json"
_BYTES = 256

Ids = npt.NDArray[np.int32]


def plain_text(text: str) -> str:
    r"""Return a text as tokenizers are trained on it: with `\n` as line ends, and without a byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


class Tokenizer(Protocol):
    """Converts text to token numbers and back."""

    @property
    def level(self) -> str:
        """The kind of token: "word", "byte" or "bpe"."""

    @property
    def size(self) -> int:
        """Number of different tokens."""

    def encode(self, text: str) -> Ids:
        """Return the numbers of a text's tokens, int32 (n,), each in [0, size)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token numbers."""

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""


class WordTokenizer:
    """Words separated by white space; a line end is the token `<eos>`, an unknown word the token `<unk>`.

    Args:
        words: All tokens in the order of their numbers; `<eos>` and `<unk>` are among them.

    Raises:
        DataError: If a word occurs twice, or one of the two special tokens is missing.
    """

    level = "word"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._index = {word: index for index, word in enumerate(self.words)}
        if len(self._index) != len(self.words):
            raise DataError("Expected each word of a vocabulary once, but some occur twice")
        missing = [token for token in (END, UNKNOWN) if token not in self._index]
        if missing:
            raise DataError(f"Expected a vocabulary with {END} and {UNKNOWN}, but it has no {' and no '.join(missing)}")

    @property
    def size(self) -> int:
        """Number of words, including the two special tokens."""
        return len(self.words)

    @property
    def end(self) -> int:
        """The number of `<eos>`."""
        return self._index[END]

    def encode(self, text: str) -> Ids:
        """Return the numbers of a text's words, see `Tokenizer.encode`."""
        known, unknown = self._index.get, self._index[UNKNOWN]
        return np.fromiter((known(word, unknown) for word in split_words(text)), dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Return words separated by spaces, with a new line for each `<eos>`."""
        text = " ".join("\n" if self.words[index] == END else self.words[index] for index in ids)
        return text.replace("\n ", "\n")

    def to_json(self) -> str:
        """Return the vocabulary as a WordLevel model of the `tokenizers` library."""
        line_ends = {"type": "Replace", "pattern": {"String": "\n"}, "content": f" {END} "}
        model = {"type": "WordLevel", "vocab": self._index, "unk_token": UNKNOWN}
        return _document(model, {"type": "WhitespaceSplit"}, line_ends, None)


class ByteTokenizer:
    """The 256 bytes of UTF-8, each a token; its number is its value."""

    level = "byte"
    size = _BYTES

    def encode(self, text: str) -> Ids:
        """Return the bytes of a text, see `Tokenizer.encode`."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of bytes; invalid UTF-8 becomes the replacement character."""
        return bytes(int(value) for value in ids).decode(errors="replace")

    def to_json(self) -> str:
        """Return a byte-pair encoding without pairs."""
        model = {"type": "BPE", "vocab": {char: value for value, char in enumerate(_byte_characters())}, "merges": []}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return _document(model, level, None, level)


class BpeTokenizer:
    """Byte-pair encoding, by the `tokenizers` library.

    Args:
        document: The content of `tokenizer.json`.

    Raises:
        MissingExtraError: If the library is not installed.
        DataError: If it cannot read the document.
    """

    level = "bpe"

    def __init__(self, document: str) -> None:
        self._library = _tokenizers()
        try:
            self._tokenizer = self._library.Tokenizer.from_str(document)
        except Exception as error:  # the library raises no narrower exception
            raise DataError(f"Expected a tokenizer that the tokenizers library reads, but got: {error}") from error

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> Ids:
        """Return the numbers of a text's tokens, see `Tokenizer.encode`."""
        lines = lines_of(text)  # the whole text at once would take many times the memory
        parts = (self._tokenizer.encode_batch(lines[first : first + 4096]) for first in range(0, len(lines), 4096))
        ids = (np.asarray(entry.ids, dtype=np.int32) for part in parts for entry in part)
        return np.concatenate([np.empty(0, np.int32), *ids])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def to_json(self) -> str:
        """Return the content of `tokenizer.json` from the library."""
        return str(self._tokenizer.to_str())


def train_bpe(lines: Iterable[str], size: int) -> BpeTokenizer:
    """Learn a byte-level byte-pair encoding.

    Args:
        lines: The lines of the training text, with their line ends.
        size: Number of tokens, at least 257.

    Raises:
        MissingExtraError: If the `tokenizers` library is not installed.
        UsageError: If `size` leaves no token for a pair.
    """
    if size <= _BYTES:
        raise UsageError(f"Expected more than {_BYTES} tokens for byte-pair encoding, but got {size}")
    library = _tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    # Lines are encoded one by one, here and by whoever reads the file.
    lines_apart = library.pre_tokenizers.Split("\n", "merged_with_previous")
    in_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([lines_apart, in_bytes])
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = sorted(_byte_characters())
    trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return BpeTokenizer(tokenizer.to_str())


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        DataError: If it is missing or not such a file.
        MissingExtraError: If it needs the `tokenizers` library and that is not installed.
    """
    try:
        return parse_tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"Expected a tokenizer at {path}, but got: {error!r}") from error


def parse_tokenizer(content: bytes, where: str = FILE_NAME) -> Tokenizer:
    """Return the tokenizer of the content of a `tokenizer.json`; `where` is its name in error messages.

    Raises:
        DataError: If it is not such a file.
        MissingExtraError: If it needs the `tokenizers` library and that is not installed.
    """
    try:
        text = content.decode("utf-8")
        model = json.loads(text)["model"]
        kind, vocabulary = model["type"], model["vocab"]
        if kind == "WordLevel":
            return WordTokenizer(sorted(vocabulary, key=vocabulary.__getitem__))
        if kind == "BPE" and not model["merges"] and len(vocabulary) == _BYTES:
            return ByteTokenizer()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"Expected a tokenizer at {where}, but got: {error!r}") from error
    return BpeTokenizer(text)


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text with their ends, `\n`; other characters that break lines do not end them."""
    return list(io.StringIO(text, newline="\n"))


def split_words(text: str) -> Iterator[str]:
    """Yield the words of a text, and `<eos>` for each line end."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        yield from (text[start:] if end < 0 else text[start:end]).split()
        if end < 0:
            return
        yield END
        start = end + 1


def _document(model: dict[str, Any], pre: dict[str, Any], normalizer: Any, decoder: Any) -> str:
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False)


def _byte_characters() -> list[str]:
    """Return the printable character that represents each byte in byte-level encodings (Radford et al., 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(value if value in printable else next(others)) for value in range(_BYTES)]


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError(
            "Expected the tokenizers library, which byte-pair encoding needs, but it is not installed",
            extra="text",
        ) from error
    return tokenizers
