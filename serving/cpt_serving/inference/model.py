"""The engine's interface to models: tensors in and out, and which requests can be computed together."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.processors.text_processor import TextProcessor

Tensors = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of the model's inputs or outputs."""

Outcome = Tensors | Exception
"""Outputs of a request, or the error that it is answered with."""


def bytes_of(tensors: Tensors) -> int:
    """Return the size of tensors in bytes."""
    return sum([values.nbytes for values in tensors.values()])


class Model(ABC):
    """One model version of any kind. `run` is called from several threads at once, the other methods from one."""

    bundle: Bundle
    """Bundle of the model."""

    row_bytes: int = 1
    """Approximate bytes of a waiting row, where sizes are free at least."""

    @abstractmethod
    def load(self) -> None:
        """Load the model, warm it up and check that it reproduces its golden sample; blocks until that is done.

        Raises:
            CptError: If it cannot be loaded, does not reproduce the sample, or lacks required evidence.
        """

    @abstractmethod
    def rows(self, inputs: Tensors) -> int:
        """Return the number of rows of a request's inputs."""

    @abstractmethod
    def batch_key(self, inputs: Tensors) -> Hashable:
        """Return a key that requests must share to be computed together."""

    @abstractmethod
    def largest_batch(self, inputs: Tensors) -> int:
        """Return how many rows like these may be in one batch."""

    @abstractmethod
    def run(self, requests: Sequence[Tensors]) -> Sequence[Outcome]:
        """Compute requests of one key together, and return the outcome of each in order."""


class TextModel(Model):
    """A model that continues a text: tokens and states in, logits and states out."""

    text: TextProcessor
    """Tokenizer of the model."""

    chunk: int
    """Maximum tokens of a text that one call reads."""

    context: int | None
    """Maximum tokens of a text with its continuation; None if there is no limit."""

    @abstractmethod
    def inputs_of(self, tokens: npt.NDArray[np.int64], outputs: Tensors | None) -> Tensors:
        """Return the inputs of a call.

        Args:
            tokens: int64 (N, T).
            outputs: Outputs of the previous call; `None` at the beginning.
        """

    @abstractmethod
    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a client's text; slow for long texts.

        Raises:
            InvalidRequestError: If it is longer than the limit or the context.
        """
