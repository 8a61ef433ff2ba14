"""Statistics of single samples for the report page: the confusion matrix, and pairs of trained and served logits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_deploy.validation.comparison import Logits

MOST_CELLS = 2000
MOST_LOGIT_PAIRS = 1500


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of onnxruntime.

    Args:
        classes: Number of classes.
        cells: Class, predicted label and number of samples of the most frequent non-empty cells.
        omitted: Number of samples in omitted cells.
    """

    classes: int
    cells: tuple[tuple[int, int, int], ...]
    omitted: int


@dataclass(frozen=True)
class LogitPairs:
    """A random sample of logits of two runtimes.

    Args:
        first: Name of the first runtime.
        second: Name of the second.
        first_logits: Logits of the first, rounded to six digits.
        second_logits: Logits of the second for the same samples and classes.
    """

    first: str
    second: str
    first_logits: tuple[float, ...]
    second_logits: tuple[float, ...]


class ConfusionCount:
    """Counts predicted labels by true class."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros((0, 0), np.int64)

    def add(self, logits: Logits, labels: npt.NDArray[np.int64]) -> None:
        """Add a batch: logits, float32 (N, K), and the true classes, int64 (N,)."""
        if not self._counts.size:
            self._counts = np.zeros((logits.shape[1],) * 2, np.int64)
        np.add.at(self._counts, (labels, logits.argmax(axis=1)), 1)

    def result(self) -> Confusion:
        """Return the counts, at most `MOST_CELLS` of them."""
        found = [(int(i), int(j), int(self._counts[i, j])) for i, j in np.argwhere(self._counts)]
        kept = sorted(sorted(found, key=lambda cell: -cell[2])[:MOST_CELLS])
        omitted = int(self._counts.sum()) - sum(count for _, _, count in kept)
        return Confusion(len(self._counts), tuple(kept), omitted)


class LogitSampler:
    """Samples the same random logits of two runtimes from a stream of batches.

    Args:
        first: Name of the first runtime.
        second: Name of the second.
        samples: Total number of samples in the stream.
    """

    def __init__(self, first: str, second: str, samples: int) -> None:
        self.first, self.second, self.samples = first, second, samples
        self._position = 0
        self._chosen: npt.NDArray[np.int64] | None = None
        self._values: list[npt.NDArray[np.float32]] = []

    def add(self, logits: Mapping[str, Logits]) -> None:
        """Add a batch: logits of each runtime, float32 (N, K)."""
        pair = np.stack([logits[self.first].ravel(), logits[self.second].ravel()])
        if self._chosen is None:
            # A fixed seed: the same samples give the same report. Evenly spaced logits could all be of one class.
            total = self.samples * logits[self.first].shape[1]
            count = min(MOST_LOGIT_PAIRS, total)
            self._chosen = np.sort(np.random.default_rng(0).choice(total, count, replace=False))
        end = self._position + pair.shape[1]
        inside = self._chosen[(self._chosen >= self._position) & (self._chosen < end)]
        self._values.append(pair[:, inside - self._position])
        self._position = end

    def result(self) -> LogitPairs:
        """Return the pairs in which both logits are finite."""
        pairs = np.concatenate(self._values, axis=1) if self._values else np.zeros((2, 0), np.float32)
        first, second = pairs[:, np.isfinite(pairs).all(axis=0)]
        return LogitPairs(self.first, self.second, _rounded(first), _rounded(second))


def _rounded(values: npt.NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
