"""Overlap of the maps of two segmenters: intersection over union of their positions."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_AXES = 4
_PROBABLE = 0.5
"""Threshold of probabilities; that of real values beyond 0 to 1 is 0, where a sigmoid is as large."""


def is_map(values: Array) -> bool:
    """Return whether an output is a map of real values at positions, (N, C, H, W)."""
    return values.ndim == _AXES and values.dtype.kind == "f" and min(values.shape) > 0 and min(values.shape[2:]) > 1


class Areas:
    """Collects intersections and unions of maps: of positions above a threshold, or of each class."""

    def __init__(self) -> None:
        self._shared: Array = np.zeros(0)
        self._either: Array = np.zeros(0)
        self._threshold: float | None = None

    def add(self, wanted: Array, got: Array) -> None:
        """Add maps (N, C, H, W) of the float model, and those of another."""
        more = max(wanted.shape[1], got.shape[1]) - len(self._shared)
        if more > 0:  # the number of channels may follow from the input
            self._shared, self._either = (np.pad(sums, (0, more)) for sums in (self._shared, self._either))
        if wanted.shape[1] == 1:
            if self._threshold is None:
                self._threshold = _PROBABLE if wanted.min() >= 0 and wanted.max() <= 1 else 0.0
            self._count(0, wanted > self._threshold, got > self._threshold)
            return
        first, second = wanted.argmax(axis=1), got.argmax(axis=1)
        for kind in np.union1d(first, second):
            self._count(int(kind), first == kind, second == kind)

    def value(self) -> float:
        """Return the overlap, the mean over the classes that occur; 1 if nothing is above the threshold."""
        there = self._either > 0
        return float((self._shared[there] / self._either[there]).mean()) if there.any() else 1.0

    def _count(self, kind: int, first: Array, second: Array) -> None:
        self._shared[kind] += np.count_nonzero(first & second)
        self._either[kind] += np.count_nonzero(first | second)
