"""Load scikit-learn's bundled digits: 1,797 real 8x8 images that need no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_deploy.data.images import ArrayImages, Split
from cpt_deploy.errors import MissingExtraError

TEST_EVERY = 5
"""Within each class every fifth image, in the original order, is a test image (355 of 1,797)."""


def load_digits(split: Split) -> ArrayImages:
    """Return the digits of one split; gray values 0..16 are scaled to 0..255.

    The split uses no random numbers, so it is the same everywhere. The original order groups the images by writer, and
    both splits have digits of all writers.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    table = _table()
    labels = table[:, -1].astype(np.int64)
    pixels = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
    rank = np.empty_like(labels)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    chosen = (rank % TEST_EVERY == TEST_EVERY - 1) == (split == "test")
    classes = tuple(str(digit) for digit in range(10))
    return ArrayImages("digits", split, classes, labels[chosen], pixels[chosen])


def _table() -> npt.NDArray[np.float64]:
    """Return the gray values 0..16 of each image and its label, (1797, 65)."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "Expected scikit-learn, which contains the digits, but it is not installed",
            extra="train",
        )
    # Read the file directly: importing scikit-learn imports SciPy, which would take most of a short command's time.
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits as scikit_learns

    bunch = scikit_learns()
    return np.column_stack([bunch.data, bunch.target])
