"""Convert a prompt to tokens, and generated tokens to text one by one."""

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from cpt_deploy.bundle.processors.tokenization import BpeTokenizer, ByteTokenizer, Tokenizer, WordTokenizer

Decoder = Callable[[int], str]
"""A function called with each token: returns the text completed by it; on `END`, the remaining text."""

END = -1


class TextCodec:
    """A tokenizer with incremental decoding for generation; may be used from several threads.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._library: Any = None
        if isinstance(tokenizer, BpeTokenizer):
            import tokenizers  # installed, otherwise the BpeTokenizer could not exist

            self._library = tokenizers.Tokenizer.from_str(tokenizer.to_json())

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.size

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens to start from with an empty prompt: a line end, which precedes each line of the corpus."""
        return tuple(self.encode("\n"))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        # Replace characters without UTF-8 bytes (lone surrogates), which a command's arguments can contain.
        clean = text.encode("utf-8", errors="replace").decode()
        return [int(token) for token in self.tokenizer.encode(clean)]

    def decoder(self, before: Sequence[int]) -> Decoder:
        """Return a decoder of generated tokens that continue the tokens `before`."""
        if isinstance(self.tokenizer, WordTokenizer):
            return _word_decoder(self.tokenizer, before)
        if isinstance(self.tokenizer, ByteTokenizer):
            return _byte_decoder(before)
        return _library_decoder(self._library, before)

    def token_text(self, token: int) -> str:
        """Return the text of a token for lists of probabilities; a non-printable byte as its hexadecimal value."""
        if isinstance(self.tokenizer, WordTokenizer):
            return self.tokenizer.words[token]
        if isinstance(self.tokenizer, ByteTokenizer):
            return chr(token) if 32 <= token < 127 else f"<0x{token:02X}>"
        return str(self._library.decode([token], skip_special_tokens=False))


def _word_decoder(tokenizer: WordTokenizer, before: Sequence[int]) -> Decoder:
    """Return a decoder that puts a space before each word but the first of a line."""
    fresh = not before or before[-1] == tokenizer.end

    def decode(token: int) -> str:
        nonlocal fresh
        if token == END:
            return ""
        if token == tokenizer.end:
            fresh = True
            return "\n"
        text = tokenizer.words[token] if fresh else f" {tokenizer.words[token]}"
        fresh = False
        return text

    return decode


def _byte_decoder(before: Sequence[int]) -> Decoder:
    """Return a decoder that returns characters once they are complete, and U+FFFD for invalid bytes."""
    incremental = codecs.getincrementaldecoder("utf-8")(errors="replace")
    incremental.decode(bytes(before))

    def decode(token: int) -> str:
        return incremental.decode(b"", final=True) if token == END else incremental.decode(bytes([token]))

    return decode


def _library_decoder(library: Any, before: Sequence[int]) -> Decoder:
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(ids=list(before), skip_special_tokens=False)

    def decode(token: int) -> str:
        return "" if token == END else stream.step(library, token) or ""

    return decode
