"""The samples of a validation: batches of named inputs with targets, and the score of each sample."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

OTHER_DATA = "validate on the data set that the model was trained for"
"""Hint if samples do not fit a model."""

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of a model's inputs or outputs, (N, ...) each."""

Runtime = Callable[[Arrays], Arrays]
"""A model: maps inputs to all outputs of its signature; states that are missing are the initial ones."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of samples.

    Args:
        inputs: Inputs by name, without states, (N, ...) each.
        targets: What the outputs are scored against, (N, ...).
        first: Whether the rows begin here; otherwise they continue those of the batch before, with its states.
    """

    inputs: Arrays
    targets: npt.NDArray[Any]
    first: bool = True


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one split of a data set.

    Args:
        name: Name of the data set.
        split: Name of the split.
        sha256: Digest of the content of the whole split, hexadecimal.
        size: Number of samples of the whole split.
        count: Number of samples in `batches`.
        batches: Returns an iterator over the batches, the same ones each time.
        notes: Sentences about the samples for the report.
        problem: Why they do not fit the processor, unless someone edited that; None if they fit.
    """

    name: str
    split: str
    sha256: str
    size: int
    count: int
    batches: Callable[[], Iterator[Batch]]
    notes: tuple[str, ...] = ()
    problem: str | None = None

    def first_inputs(self) -> Arrays:
        """Return the inputs of the first batch."""
        return next(self.batches()).inputs


@dataclass(eq=False)
class Scores:
    """The scores of all samples in one runtime, batch by batch.

    Args:
        values: Scores, float64 (N, ...) for each batch.
        targets: Targets, (N, ...) for each batch.
    """

    values: list[npt.NDArray[np.float64]] = field(default_factory=list)
    targets: list[npt.NDArray[Any]] = field(default_factory=list)

    def add(self, values: npt.NDArray[np.float64], targets: npt.NDArray[Any]) -> None:
        """Add a batch."""
        self.values.append(values)
        self.targets.append(targets)

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(values.size for values in self.values)

    def flat(self) -> npt.NDArray[np.float64]:
        """Return the score of each sample, float64 (count,)."""
        return np.concatenate([values.ravel() for values in self.values])

    def paired_with(self, other: "Scores") -> bool:
        """Return whether both are scores of the same samples, in the same order."""
        return len(self.targets) == len(other.targets) and all(
            np.array_equal(ours, theirs) for ours, theirs in zip(self.targets, other.targets, strict=True)
        )


def spread(size: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return the indices of up to `limit` of `size` samples, evenly spread, since many sets are sorted by class."""
    count = size if limit is None else min(limit, size)
    return np.arange(count, dtype=np.int64) * size // count
