"""Mean average precision of a detector, with the boxes of its float model as the truth."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
Boxes = npt.NDArray[np.float64]
"""Boxes of one image: left, top, right, bottom, score, class; (B, 6)."""

MATCHED = 0.5
"""Least overlap (intersection over union) of two boxes of one object."""
TRUE = 0.3
"""Least score of a box of the float model that counts as an object."""
_CORNERS, _LABELS, _RANKS = 4, "iu", (1, 2)


def boxes_of(outputs: Arrays) -> list[Boxes] | None:
    """Return the boxes of each image of a call; None if the outputs are not those of a detector.

    A detector has an output of corners (..., B, 4), one of real scores (..., B) and one of integer labels (..., B),
    without a batch, or with one in all of them.
    """
    for name, corners in outputs.items():
        if corners.dtype.kind != "f" or corners.ndim - 1 not in _RANKS or corners.shape[-1:] != (_CORNERS,):
            continue
        alike = [values for key, values in outputs.items() if key != name and values.shape == corners.shape[:-1]]
        scores = [values for values in alike if values.dtype.kind == "f"]
        labels = [values for values in alike if values.dtype.kind in _LABELS]
        if len(scores) == 1 and len(labels) == 1:
            parts = [corners, scores[0][..., None], labels[0][..., None]]
            rows = np.concatenate([part.astype(np.float64) for part in parts], axis=-1)
            return list(rows if rows.ndim == len(("image", "box", "value")) else rows[None])
    return None


class AveragePrecision:
    """Collects boxes image by image."""

    def __init__(self) -> None:
        self.objects = 0
        """Number of boxes of the float model that count as objects."""
        self._truths: dict[int, int] = defaultdict(int)
        self._found: dict[int, list[tuple[float, bool]]] = defaultdict(list)

    def add(self, truth: Boxes, found: Boxes) -> None:
        """Add an image: the boxes of the float model and those of another."""
        truth = truth[truth[:, 4] >= TRUE]
        self.objects += len(truth)
        for kind in np.unique(np.concatenate([truth[:, 5], found[:, 5]])).astype(int):
            wanted, boxes = truth[truth[:, 5] == kind], found[found[:, 5] == kind]
            self._truths[kind] += len(wanted)
            left = list(range(len(wanted)))
            for box in boxes[np.argsort(-boxes[:, 4], kind="stable")]:
                overlaps = overlap(box, wanted[left])
                best = int(overlaps.argmax()) if left else -1
                matched = best >= 0 and overlaps[best] >= MATCHED
                if matched:
                    del left[best]
                self._found[kind].append((float(box[4]), matched))

    def value(self) -> float | None:
        """Return the mean over the classes that the float model finds; None if it finds nothing."""
        precisions = [self._of(kind) for kind, count in self._truths.items() if count]
        return float(np.mean(precisions)) if precisions else None

    def _of(self, kind: int) -> float:
        """Return the area below the curve of precision over recall, of the greatest precision at each recall."""
        found = sorted(self._found[kind], key=lambda entry: -entry[0])
        right = np.cumsum([matched for _, matched in found], dtype=np.float64)
        if not len(right):
            return 0.0
        recall, precision = right / self._truths[kind], right / np.arange(1, len(right) + 1)
        greatest = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(recall, prepend=0.0) * greatest).sum())


def overlap(box: Boxes, others: Boxes) -> Boxes:
    """Return the intersection over union of a box with others, (B,)."""
    corners, ends = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    shared = np.maximum(ends - corners, 0).prod(axis=1)
    areas = [np.maximum(each[..., 2:4] - each[..., :2], 0).prod(axis=-1) for each in (box, others)]
    total: Boxes = np.maximum(areas[0] + areas[1] - shared, 1e-12)
    return np.asarray(shared / total)
