"""scikit-learn's bundled digits: 1,797 real 8x8 images that need no download."""

import numpy as np

from cpt_deploy.data.images import ArrayImages, Split
from cpt_deploy.errors import MissingExtraError

TEST_EVERY = 5
"""Within each class every fifth image, in the original order, is a test image (355 of 1,797)."""


def load_digits(split: Split) -> ArrayImages:
    """Return the digits of one split; gray values 0..16 are scaled to 0..255.

    The split depends on no random numbers, so it is the same everywhere. The original order groups the images by
    writer, and both splits have digits of all writers.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            "Expected scikit-learn, which holds the digits, but it is not installed",
            hint="pip install 'cpt-deploy[train]'",
        ) from error
    bunch = datasets.load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    pixels = np.rint(np.asarray(bunch.images) * (255.0 / 16.0)).astype(np.uint8)
    rank = np.empty_like(labels)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    chosen = (rank % TEST_EVERY == TEST_EVERY - 1) == (split == "test")
    classes = tuple(str(digit) for digit in range(10))
    return ArrayImages("digits", split, classes, labels[chosen], pixels[chosen])
