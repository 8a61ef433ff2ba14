"""Agreement of two models' outputs on the same inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.metric import MOST_DECIBELS
from cpt_deploy.validation.accuracy.boxes import TRUE, AveragePrecision, boxes_of
from cpt_deploy.validation.accuracy.maps import Areas, is_map


@dataclass(frozen=True)
class OutputAgreementFacts:
    """Agreement of one output with a reference.

    Args:
        name: Its name.
        sqnr_db: Signal to quantization noise in decibels, 200 at most.
        cosine: Cosine similarity.
        worst: The largest difference.
        top1: Share of rows with the same largest value; `None` if the output is no matrix of several columns.
        overlap: Intersection over union of the positions of maps (N, C, H, W): of those above a threshold with one
            channel, else of those of each class, the mean; `None` if the output is none.
        other_shapes: Number of calls in which the output had another shape, where all of it is noise.
    """

    name: str
    sqnr_db: float
    cosine: float
    worst: float
    top1: float | None
    overlap: float | None = None
    other_shapes: int = 0


@dataclass(frozen=True)
class DetectionFacts:
    """Agreement of the boxes of a detector with those of a reference.

    Args:
        mean_average_precision: At an overlap of 0.5, the mean over the classes that the reference finds.
        objects: Number of boxes of the reference that count as objects.
        least_score: Their least score.
    """

    mean_average_precision: float
    objects: int
    least_score: float


class Agreement:
    """Collects the agreement of outputs, call by call.

    Attributes:
        boxes: Collects the boxes of detectors.
    """

    def __init__(self) -> None:
        self.boxes = AveragePrecision()
        self._maps: dict[str, Areas] = {}
        self._others: dict[str, int] = {}
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._worst: dict[str, float] = {}
        self._rows: dict[str, list[int]] = {}

    def add(self, reference: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add a call; outputs that are no numbers are left out, those of another shape are counted."""
        truth, found = boxes_of(reference), boxes_of(outputs)
        for image, other in zip(truth or (), found or (), strict=False):
            self.boxes.add(image, other)
        for name, wanted in reference.items():
            got = outputs.get(name)
            if got is None or wanted.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
                continue
            self._sums.setdefault(name, np.zeros(4))
            self._worst.setdefault(name, 0.0)
            if got.shape != wanted.shape:
                self._others[name] = self._others.get(name, 0) + 1
                whole = [float(np.square(reals(values)).sum()) for values in (wanted, got)]
                self._sums[name] += np.array([*whole, 0.0, max(whole)])
                continue
            if is_map(wanted):
                self._maps.setdefault(name, Areas()).add(wanted, got)
            first, second = reals(wanted), reals(got)
            noise = first - second
            sums = np.array(
                [
                    (part * other).sum()
                    for part, other in ((first, first), (second, second), (first, second), (noise, noise))
                ]
            )
            self._sums[name] = self._sums.get(name, np.zeros(4)) + sums
            self._worst[name] = max(self._worst.get(name, 0.0), float(np.abs(noise).max(initial=0)))
            if wanted.ndim == 2 and wanted.shape[1] > 1:
                rows = self._rows.setdefault(name, [0, 0])
                best, other = (np.nan_to_num(values).argmax(axis=1) for values in (wanted, got))
                rows[0] += int((best == other).sum())
                rows[1] += len(first)

    def detection(self) -> DetectionFacts | None:
        """Return the agreement of boxes; `None` if the outputs are not those of a detector, or it finds nothing."""
        value = self.boxes.value()
        return None if value is None else DetectionFacts(value, self.boxes.objects, TRUE)

    def results(self) -> tuple[OutputAgreementFacts, ...]:
        """Return the agreement of each output."""
        return tuple(
            OutputAgreementFacts(
                name,
                *_ratios(sums),
                self._worst[name],
                _share(self._rows.get(name)),
                None if name not in self._maps else self._maps[name].value(),
                self._others.get(name, 0),
            )
            for name, sums in self._sums.items()
        )


def reals(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return values with 0 in place of those that are not finite, so that one that only one model has is noise."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _ratios(sums: npt.NDArray[np.float64]) -> tuple[float, float]:
    signal, other, both, noise = map(float, sums)
    decibels = MOST_DECIBELS if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))
    return min(decibels, MOST_DECIBELS), both / float(np.sqrt(signal * other)) if signal * other else 1.0


def _share(rows: list[int] | None) -> float | None:
    return rows[0] / rows[1] if rows else None
