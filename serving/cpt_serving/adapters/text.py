"""The adapter of text generation: tensors as in any model with states, and text in and text out."""

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.processors.text_processor import TextProcessor, context_of
from cpt_deploy.bundle.runtime.tensors import initial_states, next_states
from cpt_deploy.signature import BATCH, TOKENS_NAME
from cpt_serving.adapters.adapter import Adapter
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors, TextModel
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import bad_request

_LOGITS_AT_ONCE = 4_000_000
"""Maximum logits of one call, so that a long text with a large vocabulary does not block others for long."""

_LONGEST_CHUNK = 128


class TextAdapter(Adapter, TextModel):
    """One version of a language model."""

    form = "text"

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        self.text, self.context = bundle.expect_processor(TextProcessor), context_of(bundle.signature)
        self.chunk = max(1, min(_LONGEST_CHUNK, _LOGITS_AT_ONCE // self.text.size, self.context or _LONGEST_CHUNK))
        self._longest = min(self.context or settings.max_free_size, settings.max_free_size)

    def complete(self, inputs: Tensors, *copies: int) -> Tensors:
        """See `Adapter`; tokens must be of the vocabulary."""
        inputs = super().complete(inputs, *copies)
        tokens = inputs[TOKENS_NAME]
        if tokens.min() < 0 or tokens.max() >= self.text.size:
            raise bad_request(f"Expected tokens in 0..{self.text.size - 1}, but got {tokens.min()}..{tokens.max()}")
        return inputs

    def inputs_of(self, tokens: npt.NDArray[np.int64], outputs: Tensors | None) -> Tensors:
        """See `TextModel`."""
        if outputs is None:
            return {TOKENS_NAME: tokens, **initial_states(self.signature, {BATCH: len(tokens)})}
        return {TOKENS_NAME: tokens, **next_states(self.signature, outputs)}

    def tokens_of(self, text: str) -> list[int]:
        """See `TextModel`."""
        tokens = self.text.encode(text)
        if len(tokens) > self._longest:
            what = "context of the model" if self._longest == self.context else "limit here"
            raise InvalidRequestError(
                f"Expected a text of at most {self._longest} tokens, the {what}, but got {len(tokens)}"
            )
        return tokens

    def facts(self) -> dict[str, int | str | None]:
        """See `Adapter`."""
        return {"vocabulary": self.text.size, "context": self.context}
