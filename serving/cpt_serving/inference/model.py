"""What the engine knows of a model: tensors in and out, and which requests can be computed together."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import LanguageManifest
from cpt_deploy.bundle.language.text import TextCodec
from cpt_deploy.bundle.opened import OpenedBundle

Tensors = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of the model's inputs or outputs."""


class Model(ABC):
    """One model version of any kind. `run` is called from several threads at once, the rest from any one."""

    bundle: OpenedBundle
    """Where it comes from."""

    row_bytes: int = 1
    """Bytes that a row takes while it waits, about."""

    @abstractmethod
    def load(self) -> None:
        """Load it, warm it up and check that it gives what it gave at export; takes as long as that takes.

        Raises:
            CptError: If it cannot be loaded, gives something else, or evidence is required and does not hold.
        """

    @abstractmethod
    def rows(self, inputs: Tensors) -> int:
        """Return how many rows a request's inputs have."""

    @abstractmethod
    def batch_key(self, inputs: Tensors) -> Hashable:
        """Return what requests must have in common to be computed together."""

    @abstractmethod
    def largest_batch(self, inputs: Tensors) -> int:
        """Return how many rows like these may be computed together."""

    @abstractmethod
    def run(self, requests: Sequence[Tensors]) -> Sequence[Tensors]:
        """Compute requests of one key together, and return the outputs of each in their order."""


class TextModel(Model):
    """A model that goes on with a text: tokens and state in, logits and state out."""

    manifest: LanguageManifest
    """What its tensors are."""

    text: TextCodec
    """From text to tokens and back."""

    chunk: int
    """How many tokens of a text one call reads."""

    @abstractmethod
    def inputs_of(self, tokens: npt.NDArray[np.int64], outputs: Tensors | None) -> Tensors:
        """Return the inputs of a call.

        Args:
            tokens: int64 (N, T).
            outputs: What the call before gave; `None` at the beginning.
        """
