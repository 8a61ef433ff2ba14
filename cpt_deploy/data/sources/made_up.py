"""Random images of the shape of a data set, with which a smoke run takes its steps where that is missing."""

import numpy as np

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.images import ArrayImages, Split

IMAGES = 8
PHOTOGRAPHS = Preprocessing(channels=3, size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The shape of images of an unknown data set."""


def made_up_images(name: str, split: Split, shape: Preprocessing, classes: int) -> ArrayImages:
    """Return images of random pixels with random labels.

    Args:
        name: Their name.
        split: The split, each of which has other pixels.
        shape: Has their channels and size.
        classes: Number of classes.
    """
    random = np.random.default_rng(len(split))
    sizes = (IMAGES, *shape.size) if shape.channels == 1 else (IMAGES, *shape.size, 3)
    labels = random.integers(classes, size=IMAGES)
    pixels = random.integers(256, size=sizes, dtype=np.uint8)
    return ArrayImages(name, split, tuple(f"class {label}" for label in range(classes)), labels, pixels)
