"""The manifest of a bundle's language model: its vocabulary, the tensors of its state, and its context."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH, PAST = "batch", "past"
"""Names of a state's dimensions without a fixed size: sequences, and tokens read so far."""

TOKENS_NAME, LOGITS_NAME = "tokens", "logits"

STATE_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype(np.float32),
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
}
"""Possible data types of a state, by their names in the Open Inference Protocol."""


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A state tensor: an output of each call that is an input of the next, such as hidden values or a key cache.

    Args:
        input: Its name among the inputs.
        output: Its name among the outputs.
        shape: Its dimensions: `BATCH` once, and `PAST` for a dimension that grows with each token.
        datatype: One of `STATE_TYPES`.
        fill: The value of all elements before the first token; for quantized values, their zero point.

    Raises:
        ValueError: If a field is invalid.
    """

    input: str
    output: str
    shape: tuple[int | str, ...]
    datatype: str = "FP32"
    fill: float = 0

    def __post_init__(self) -> None:
        named = [size for size in self.shape if isinstance(size, str)]
        if named.count(BATCH) != 1 or named.count(PAST) > 1 or not set(named) <= {BATCH, PAST}:
            raise ValueError(f"Expected {self.input} to have the dimension {BATCH!r} once, but got {self.shape}")
        if any(isinstance(size, int) and size < 1 for size in self.shape):
            raise ValueError(f"Expected {self.input} to have positive dimensions, but got {self.shape}")
        if self.datatype not in STATE_TYPES:
            raise ValueError(f"Expected {self.input} of a type in {list(STATE_TYPES)}, but got {self.datatype!r}")

    def initial(self, batch: int) -> npt.NDArray[Any]:
        """Return the state of `batch` sequences before the first token."""
        shape = [batch if size == BATCH else 0 if size == PAST else int(size) for size in self.shape]
        return np.full(shape, self.fill, STATE_TYPES[self.datatype])


@dataclass(frozen=True, slots=True)
class LanguageManifest:
    """The inputs and outputs of a language model: tokens and state in, logits and new state out.

    The input `tokens` is int64 (batch, T), the output `logits` float32 (batch, T, vocabulary): the logits at position t
    are those of the token that follows `tokens[:, t]`.

    Args:
        vocabulary: Number of tokens.
        states: The tensors of its state.
        context: Maximum number of tokens, including generated ones; `None` if there is no limit.

    Raises:
        ValueError: If a field is invalid.
    """

    vocabulary: int
    states: tuple[StateTensor, ...]
    context: int | None = None

    def __post_init__(self) -> None:
        if self.vocabulary < 1 or (self.context is not None and self.context < 1):
            raise ValueError(f"Expected a vocabulary and a context, but got {self.vocabulary} and {self.context}")
        names = [name for state in self.states for name in (state.input, state.output)] + [TOKENS_NAME, LOGITS_NAME]
        if len(set(names)) != len(names):
            raise ValueError(f"Expected different names of tensors, but got {names}")

    def initial_state(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Return the state before the first token, by the names of the inputs."""
        return {state.input: state.initial(batch) for state in self.states}

    def joined(self, states: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        """Concatenate the states of several calls, in order; all must have read the same number of tokens."""
        return {
            entry.input: np.concatenate([state[entry.input] for state in states], entry.shape.index(BATCH))
            for entry in self.states
        }

    def rows_of(self, state: Mapping[str, npt.NDArray[Any]], rows: slice) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the state of the given sequences."""
        places = ((entry.input, (slice(None),) * entry.shape.index(BATCH) + (rows,)) for entry in self.states)
        return {name: state[name][place].copy() for name, place in places}

    def past_of(self, state: Mapping[str, npt.NDArray[Any]]) -> int:
        """Return the number of tokens in the caches of a state; 0 if the state has no cache."""
        return max(
            (state[entry.input].shape[entry.shape.index(PAST)] for entry in self.states if PAST in entry.shape),
            default=0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON types."""
        content = asdict(self)
        for state in content["states"]:
            state["shape"] = list(state["shape"])
        content["states"] = list(content["states"])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LanguageManifest":
        """Create a manifest from the result of `to_dict`.

        Raises:
            ValueError: If the content is anything else.
        """
        try:
            states = tuple(StateTensor(**{**state, "shape": tuple(state["shape"])}) for state in content["states"])
            return cls(**{**content, "states": states})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the description of a language model, but got: {error}") from error
