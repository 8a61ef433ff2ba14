"""The interface of integer language models, independent of their networks: from tokens to logits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from cpt_deploy.integer.language.parts import Arrays, Floats, IntegerLinear, IntegerTable, Trace

State = tuple[Floats, ...]
"""State of a model after the previous tokens, in the order of the exported model's states."""


class IntegerLanguageModel(Protocol):
    """A frozen language model.

    Its `run` has the arithmetic of the exported graph, operation by operation, so that from the same quantized values
    each sum is the same integer; the floats between them differ between libraries in their last digits.
    """

    #: Name of its kind, the "type" in the result of `describe`.
    kind: ClassVar[str]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def context(self) -> int | None:
        """Maximum number of past and present tokens together, or None without a limit."""

    def tables(self) -> tuple[IntegerTable, ...]:
        """Return the embedding's tables."""

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order of execution."""

    def initial_state(self, batch: int) -> State:
        """Return the state before the first token, for a batch of `batch` rows."""

    def run(
        self, tokens: npt.NDArray[np.int64], state: State | None = None, trace: Trace | None = None
    ) -> tuple[Floats, State]:
        """Return logits or log-probabilities, float32 (N, T, V), and the state after the last token.

        Args:
            tokens: int64 (N, T).
            state: The state before these tokens; the initial state by default.
            trace: Records the integers.
        """

    def arrays(self) -> Arrays:
        """Return its tensors by name."""

    def describe(self) -> dict[str, Any]:
        """Return the model's metadata as JSON types."""

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Rebuild it from the results of `describe` and `arrays`.

        Raises:
            KeyError: If something is missing.
        """


def weighted_parts(model: IntegerLanguageModel) -> list[IntegerTable | IntegerLinear]:
    """Return the parts with quantized weights: tables, then products."""
    return [*model.tables(), *model.linears()]
