"""The processor of language models: a prompt to tokens, and generated tokens to text one by one."""

import codecs
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from cpt_deploy.bundle.layout import CONFIG_FILE, TOKENIZER_FILE
from cpt_deploy.bundle.processors.processor import CardText, ReadFile
from cpt_deploy.bundle.processors.tokenization import (
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    WordTokenizer,
    parse_tokenizer,
    plain_text,
)
from cpt_deploy.errors import BundleError, DataError
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME, Signature

Decoder = Callable[[int], str]
"""A function called with each token: returns the text completed by it; on `END`, the remaining text."""

END = -1

_DIGEST = "tokenizer_sha256"


class TextProcessor:
    """A tokenizer with incremental decoding for generation; may be used from several threads.

    Its models take token ids, int64 (N, T), and states, and return the scores of the token that follows each of them,
    float32 (N, T, V): logits or log-probabilities.

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
        """Number of different tokens, V."""
        return self.tokenizer.size

    @property
    def start(self) -> tuple[int, ...]:
        """The tokens to start from with an empty prompt: a line end, which precedes each line of the corpus."""
        return tuple(self.encode("\n"))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with line ends as in the text of training."""
        # Replace characters without UTF-8 bytes (lone surrogates), which a command's arguments can contain.
        clean = plain_text(text).encode("utf-8", errors="replace").decode()
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

    @classmethod
    def read(cls, config: Mapping[str, Any], read_file: ReadFile) -> Self:
        """See `Processor`."""
        try:
            return cls(parse_tokenizer(read_file(TOKENIZER_FILE), TOKENIZER_FILE))
        except DataError as error:
            raise BundleError(error.message) from error

    def files(self) -> dict[str, bytes]:
        """See `Processor`."""
        return {TOKENIZER_FILE: self.tokenizer.to_json().encode()}

    def config(self) -> dict[str, Any]:
        """See `Processor`; a key of transformers."""
        return {"vocab_size": self.size}

    def facts(self) -> dict[str, Any]:
        """See `Processor`."""
        return {"tokens": self.tokenizer.level, _DIGEST: hashlib.sha256(self.files()[TOKENIZER_FILE]).hexdigest()}

    def check(self, signature: Signature) -> None:
        """See `Processor`."""
        given = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
        states = {name for pair in signature.states for name in pair}
        shapes = [(given[name].dtype, given[name].shape) for name in (TOKENS_NAME, OUTPUT_NAME) if name in given]
        length = shapes[0][1] if shapes else ()
        expected = [("int64", length), ("float32", (*length, self.size))]
        if given.keys() - states != {TOKENS_NAME, OUTPUT_NAME} or len(length) != 1 or shapes != expected:
            raise ValueError(
                f"Expected a language model from {TOKENS_NAME}, int64 (N, T), to {OUTPUT_NAME}, float32 (N, T, "
                f"{self.size}), one for each token of the vocabulary, and states, but its tensors are "
                + ", ".join(f"{each.name} {each.dtype} {('N', *each.shape)}" for each in given.values())
            )

    def contradictions(self, config: Mapping[str, Any], read_file: ReadFile) -> list[str]:
        """See `Processor`."""
        found = []
        if config["cpt"].get(_DIGEST) != hashlib.sha256(read_file(TOKENIZER_FILE)).hexdigest():
            found.append(f"{TOKENIZER_FILE} is not the exported one, by its digest in {CONFIG_FILE}")
        if config.get("vocab_size") != self.size:
            found.append(f"vocab_size of {CONFIG_FILE} contradicts {TOKENIZER_FILE}")
        return found

    def onnx_metadata(self) -> dict[str, str]:
        """See `Processor`."""
        return {"task": "generate"}

    def card(self, signature: Signature) -> CardText:
        """See `Processor`."""
        context = context_of(signature)
        return CardText(
            f"A language model with {self.size} tokens",
            (
                'cpt generate . "the company said"   # here',
                "cpt serve .                         # over HTTP: /generate, /score",
            ),
            f"The package tokenizers reads `{TOKENIZER_FILE}`.",
            {"context": "unbounded, in the state" if context is None else context},
        )


def context_of(signature: Signature) -> int | None:
    """Return the maximum number of tokens that a language model can read, past and present ones; None without limit."""
    (length,) = next(tensor.shape for tensor in signature.inputs if tensor.name == TOKENS_NAME)
    most = length if isinstance(length, int) else signature.free[length].most
    return min((limit for limit in (most, signature.context) if limit is not None), default=None)


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
    # Tokens since the last text, and those of that text, which the first token of a text may depend on.
    shown, waiting = list(before), list[int]()

    def text_of(ids: list[int]) -> str:
        return str(library.decode(ids, skip_special_tokens=False))

    def decode(token: int) -> str:
        nonlocal shown, waiting
        if token == END:
            return text_of(shown + waiting)[len(text_of(shown)) :] if waiting else ""
        waiting.append(token)
        text = stream.step(library, token) or ""
        if text:
            shown, waiting = waiting, []
        return text

    return decode
