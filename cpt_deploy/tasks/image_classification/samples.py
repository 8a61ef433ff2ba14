"""Test images as samples of a validation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.data import ImageSet, load_images
from cpt_deploy.errors import DataError
from cpt_deploy.validation import OTHER_DATA, Batch, Samples, spread

PIXELS_AT_A_TIME = 2**19
"""Limits the batch size, which is 64 for small images and 10 for 224 x 224."""


def test_samples(data: str, root: Path | None, processor: ImageProcessor, limit: int | None) -> Samples:
    """Return test images as inputs of a processor, see `Task.samples`."""
    return image_samples(load_images(data, split="test", root=root), processor, limit)


def image_samples(images: ImageSet, processor: ImageProcessor, limit: int | None = None) -> Samples:
    """Return images as inputs of a processor.

    Args:
        images: The images, with labels in the order of the processor's.
        processor: The processor.
        limit: Number of images, spread evenly over the set; None is all.

    Raises:
        DataError: If the data set has another number of classes.
    """
    problem, notes = _compare_classes(images, processor.labels)
    indices = spread(len(images), limit)
    return Samples(
        images.name,
        images.split,
        images.digest(),
        len(images),
        len(indices),
        partial(_batches, images, processor, indices),
        notes,
        problem,
    )


def _compare_classes(images: ImageSet, labels: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return the problem of other classes, and a note on other names, which may be intended: labels can be renamed."""
    classes = tuple(images.classes)
    if classes == labels:
        return None, ()
    problem = (
        f"Expected the {len(labels)} classes of the model in their order ({', '.join(labels[:3])}, ...), "
        f"but {images.name} ({images.split}) has {len(classes)} ({', '.join(classes[:3])}, ...)"
    )
    if len(classes) != len(labels):
        raise DataError(problem, hint=OTHER_DATA)
    if sorted(classes) == sorted(labels):
        return problem, ()
    return None, (f"the data set names its classes otherwise than the model ({classes[0]!r} for {labels[0]!r}, ...)",)


def _batches(images: ImageSet, processor: ImageProcessor, indices: npt.NDArray[np.int64]) -> Iterator[Batch]:
    height, width = processor.preprocessing.size
    # All tensors of a batch are in memory at once, in the executor as float32.
    size = max(1, min(64, PIXELS_AT_A_TIME // (height * width)))
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        pictures = [images.image(int(index)) for index in chosen]
        yield Batch(processor.inputs(pictures), images.labels[chosen])
