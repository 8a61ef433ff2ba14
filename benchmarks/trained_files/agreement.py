"""Agreement of a quantized model's outputs with the float model's, which stand for the truth: there are no labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Boxes = NDArray[np.float64]
"""Boxes of one image: left, top, right, bottom, score, class; (B, 6)."""

MATCHED = 0.5
"""Least overlap (intersection over union) of two boxes of the same object."""


def sqnr(expected: Array, got: Array) -> float:
    """Return the ratio of the power of an output to that of its error, in dB."""
    wanted = expected.astype(np.float64)
    error = np.square(wanted - got).sum()
    return float(10 * np.log10(np.square(wanted).sum() / max(error, 1e-30)))


def cosine(expected: Array, got: Array) -> float:
    """Return the cosine of the angle between two outputs."""
    first, second = expected.astype(np.float64).reshape(-1), got.astype(np.float64).reshape(-1)
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-30))


def same_labels(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Return the share of positions of (N, ..., classes) with the same top class."""
    return float(np.mean(expected[0].argmax(-1) == got[0].argmax(-1)))


def map_overlap(expected: Sequence[Array], got: Sequence[Array], threshold: float) -> float:
    """Return the intersection over union of maps above a threshold, the mean of all outputs."""
    shares = []
    for first, second in zip(expected, got, strict=True):
        wanted, found = first > threshold, second > threshold
        union = np.count_nonzero(wanted | found)
        shares.append(np.count_nonzero(wanted & found) / union if union else 1.0)
    return float(np.mean(shares))


def yolo_boxes(outputs: Sequence[Array], threshold: float) -> list[Boxes]:
    """Decode the output of a YOLOv8, (N, 4 + classes, cells)."""
    images = []
    for cells in outputs[0].astype(np.float64).transpose(0, 2, 1):
        center, half = cells[:, :2], cells[:, 2:4] / 2
        images.append(_kept(np.concatenate([center - half, center + half], axis=1), cells[:, 4:], threshold))
    return images


def picodet_boxes(outputs: Sequence[Array], threshold: float) -> list[Boxes]:
    """Decode the outputs of a PicoDet of 800x608: scores, then distances to the sides in 8 bins, at four strides."""
    strides, images = (8, 16, 32, 64), []
    for image in range(len(outputs[0])):
        boxes, scores = [], []
        for stride, found, bins in zip(strides, outputs[:4], outputs[4:], strict=True):
            width = -(-608 // stride)
            y, x = np.divmod(np.arange(found.shape[1]), width)
            center = np.stack([x + 0.5, y + 0.5], axis=1) * stride
            weights = np.exp(bins[image].reshape(-1, 4, 8).astype(np.float64))
            sides = (weights / weights.sum(-1, keepdims=True)) @ np.arange(8) * stride
            boxes.append(np.concatenate([center - sides[:, :2], center + sides[:, 2:]], axis=1))
            scores.append(found[image].astype(np.float64))
        images.append(_kept(np.concatenate(boxes), np.concatenate(scores), threshold))
    return images


def _kept(boxes: Boxes, scores: Boxes, threshold: float) -> Boxes:
    """Return the boxes above a threshold that overlap no better one of their class (non-maximum suppression)."""
    best, kinds = scores.max(axis=1), scores.argmax(axis=1)
    rows = np.concatenate([boxes, best[:, None], kinds[:, None]], axis=1)[best > threshold]
    left = list(rows[np.argsort(-rows[:, 4])])
    kept: list[Boxes] = []
    while left:
        kept.append(left.pop(0))
        left = [row for row in left if row[5] != kept[-1][5] or _overlap(row, kept[-1]) < MATCHED]
    return np.array(kept).reshape(-1, 6)


def _overlap(first: Boxes, second: Boxes) -> float:
    corner, end = np.maximum(first[:2], second[:2]), np.minimum(first[2:4], second[2:4])
    shared = float(np.prod(np.maximum(end - corner, 0)))
    total = sum(float(np.prod(np.maximum(box[2:4] - box[:2], 0))) for box in (first, second)) - shared
    return shared / total if total > 0 else 0.0


def matched_boxes(expected: Sequence[Boxes], got: Sequence[Boxes]) -> float | None:
    """Return the share of boxes that the other model has, too (F1); None if neither finds any."""
    wanted, found, matched = sum(map(len, expected)), sum(map(len, got)), 0
    for truth, boxes in zip(expected, got, strict=True):
        left = list(truth)
        for box in boxes:
            overlaps = [_overlap(box, other) if other[5] == box[5] else 0.0 for other in left]
            if overlaps and max(overlaps) >= MATCHED:
                left.pop(int(np.argmax(overlaps)))
                matched += 1
    return 2 * matched / (wanted + found) if wanted + found else None
