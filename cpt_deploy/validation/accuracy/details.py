"""Statistics of single samples for the report page: the confusion matrix, and pairs of trained and served outputs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_CELLS = 2000
MOST_PAIRS = 1500


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of onnxruntime.

    Args:
        classes: Number of classes.
        samples: Number of samples of each class.
        cells: Class, predicted label and number of samples of the most frequent non-empty cells.
        omitted: Number of samples in omitted cells.
    """

    classes: int
    samples: tuple[int, ...]
    cells: tuple[tuple[int, int, int], ...]
    omitted: int


@dataclass(frozen=True)
class OutputPairs:
    """A random sample of output values of two runtimes.

    Args:
        first: Name of the first runtime.
        second: Name of the second.
        first_values: Values of the first, rounded to six digits.
        second_values: The same values of the second.
    """

    first: str
    second: str
    first_values: tuple[float, ...]
    second_values: tuple[float, ...]


class ConfusionCount:
    """Counts predicted classes by true class.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, answers: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> None:
        """Add a batch: the predicted and the true classes, int64 (N,) each."""
        np.add.at(self._counts, (targets, answers), 1)

    def result(self) -> Confusion:
        """Return the counts, at most `MOST_CELLS` of them."""
        found = [(int(i), int(j), int(self._counts[i, j])) for i, j in np.argwhere(self._counts)]
        kept = sorted(sorted(found, key=lambda cell: -cell[2])[:MOST_CELLS])
        omitted = int(self._counts.sum()) - sum(count for _, _, count in kept)
        return Confusion(len(self._counts), tuple(self._counts.sum(axis=1).tolist()), tuple(kept), omitted)


class OutputSampler:
    """Samples the same random values of an output of two runtimes from a stream of batches.

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

    def add(self, first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], samples: int) -> None:
        """Add a batch of so many samples: the output in both runtimes, of the same shape."""
        pair = np.stack([first.ravel(), second.ravel()])
        if self._chosen is None:
            # A fixed seed: the same samples give the same report. Evenly spaced values could all be of one class.
            total = self.samples * (first.size // samples)
            count = min(MOST_PAIRS, total)
            self._chosen = np.sort(np.random.default_rng(0).choice(total, count, replace=False))
        end = self._position + pair.shape[1]
        inside = self._chosen[(self._chosen >= self._position) & (self._chosen < end)]
        self._values.append(pair[:, inside - self._position])
        self._position = end

    def result(self) -> OutputPairs:
        """Return the pairs in which both values are finite."""
        pairs = np.concatenate(self._values, axis=1) if self._values else np.zeros((2, 0), np.float32)
        first, second = pairs[:, np.isfinite(pairs).all(axis=0)]
        return OutputPairs(self.first, self.second, _rounded(first), _rounded(second))


def _rounded(values: npt.NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
