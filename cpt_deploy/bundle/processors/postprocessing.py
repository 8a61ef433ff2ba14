"""Convert logits to labelled predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its probability.

    Args:
        label: Name of the class.
        index: Its position in the bundle's labels.
        probability: Softmax probability, 0..1.
    """

    label: str
    index: int
    probability: float


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the softmax over the last axis, in float64: `exp(x - max) / sum(exp(x - max))`."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def top_k(logits: npt.NDArray[np.floating], labels: Sequence[str], k: int) -> list[list[Prediction]]:
    """Return the most probable classes of each row, best first; equal logits keep the order of the labels.

    Args:
        logits: (N, K).
        labels: Names of the K classes.
        k: Number of classes per row; all of them if there are fewer.

    Raises:
        ValueError: If `k` is less than 1, or the number of labels differs from that of logits.
    """
    if k < 1:
        raise ValueError(f"Expected k to be at least 1, but got {k}")
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise ValueError(f"Expected logits of shape (N, {len(labels)}), but got {logits.shape}")
    probabilities = softmax(logits)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return [
        [Prediction(labels[index], int(index), float(row[index])) for index in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
