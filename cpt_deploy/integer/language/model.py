"""What every integer language model is, whatever its network: codes and floats that run from tokens to logits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from cpt_deploy.integer.language.parts import Arrays, Floats, IntegerLinear, IntegerTable, Trace

State = tuple[Floats, ...]
"""What a model remembers of the tokens before, in the order of the exported model's states."""


class IntegerLanguageModel(Protocol):
    """A frozen language model.

    Its `run` has the arithmetic of the graph that is exported, operation by operation, so that given the same codes
    each sum is the same integer; what is in floats between them differs between libraries in its last places.
    """

    #: Name of its kind, the "type" of what `describe` gives.
    kind: ClassVar[str]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def context(self) -> int | None:
        """Most tokens that it can look at, those before and the present ones, or None without a limit."""

    def tables(self) -> tuple[IntegerTable, ...]:
        """Return the embedding's tables."""

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order in which they are computed."""

    def initial_state(self, batch: int) -> State:
        """Return the state before the first token of so many rows."""

    def run(
        self, tokens: npt.NDArray[np.int64], state: State | None = None, trace: Trace | None = None
    ) -> tuple[Floats, State]:
        """Return logits or log-probabilities, float32 (N, T, V), and the state after the last token.

        Args:
            tokens: int64 (N, T).
            state: The state before; that before the first token by default.
            trace: Gets the integers.
        """

    def arrays(self) -> Arrays:
        """Return its tensors by name."""

    def describe(self) -> dict[str, Any]:
        """Return what its numbers mean, as JSON types."""

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Read what `describe` and `arrays` gave.

        Raises:
            KeyError: If something is missing.
        """


def weighted_parts(model: IntegerLanguageModel) -> list[IntegerTable | IntegerLinear]:
    """Return what has weight codes: tables, then products."""
    return [*model.tables(), *model.linears()]
