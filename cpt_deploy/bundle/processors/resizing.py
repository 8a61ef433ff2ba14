"""Scale an image and keep a window of it, at a cost proportional to the window.

An image of ordinary proportions is scaled as a whole, so that the pixels equal those of `Image.resize`. In a very long
image nearly all scaled pixels are outside of the window: a strip of 1 x 1,048,576 pixels, a file of 2 kB, has 268
million of them at a height of 256. Of such an image, only the part that affects the window is scaled.
"""

from math import ceil, floor

import numpy as np
from PIL import Image

Window = tuple[int, int, int, int]
"""Left, top, right and bottom, in scaled pixels."""

_ORDINARY = 4
"""Maximum ratio of the sides up to which an image is scaled as a whole."""

_SUPPORT = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}
"""Radius of each filter, in pixels of the coarser of the two grids."""


def scale_window(image: Image.Image, size: tuple[int, int], window: Window, resample: Image.Resampling) -> Image.Image:
    """Scale an image and keep a window of the result.

    For ratios of sides above 4, pixels can differ by one level from those of scaling the whole image, since Pillow
    stores the position of a window in single precision; with "nearest", the other of two equally near pixels can be
    chosen.

    Args:
        image: An image of mode "L" or "RGB".
        size: Width and height of the whole scaled image.
        window: The window to keep.
        resample: The filter.
    """
    if size == image.size:
        return image.crop(window)
    if max(size) <= _ORDINARY * min(size):
        return image.resize(size, resample).crop(window)
    if resample is Image.Resampling.NEAREST:
        return _nearest(image, size, window)
    along = 0 if size[0] > size[1] else 1
    part = _reaching(image, size, window, along, resample)
    # Two passes with 8 bits between them, in Pillow's order: rows first, except for tall images that shrink.
    across = 1 - along
    if along == 1 and size[1] >= image.height:
        part = _scale_axis(part, across, (0.0, image.size[across]), size[across], resample)
        return _crop_axis(_along(part, image, size, window, along, resample), across, window)
    part = _along(part, image, size, window, along, resample)
    part = _scale_axis(part, across, (0.0, image.size[across]), size[across], resample)
    return _crop_axis(part, across, window)


def scaled_pixels(size: tuple[int, int], window: tuple[int, int]) -> int:
    """Return the number of pixels that `scale_window` computes.

    Args:
        size: Width and height of the whole scaled image.
        window: The two sides of the window.
    """
    whole = size[0] * size[1]
    return whole if max(size) <= _ORDINARY * min(size) else min(whole, max(window) * min(size))


def _span(
    image: Image.Image, size: tuple[int, int], window: Window, axis: int, resample: Image.Resampling
) -> tuple[int, int]:
    """Return the range of source pixels that the window needs along an axis: first, and last + 1."""
    scale = image.size[axis] / size[axis]
    reach = _SUPPORT[resample] * max(scale, 1.0)
    first = floor(window[axis] * scale - reach) - 1
    return max(0, first), min(image.size[axis], ceil(window[axis + 2] * scale + reach) + 1)


def _reaching(
    image: Image.Image, size: tuple[int, int], window: Window, axis: int, resample: Image.Resampling
) -> Image.Image:
    box = [0, 0, *image.size]
    box[axis], box[axis + 2] = _span(image, size, window, axis, resample)
    return image.crop((box[0], box[1], box[2], box[3]))


def _along(
    part: Image.Image,
    image: Image.Image,
    size: tuple[int, int],
    window: Window,
    axis: int,
    resample: Image.Resampling,
) -> Image.Image:
    """Scale the part of an image that affects the window to the window, along one axis."""
    scale, (first, _) = image.size[axis] / size[axis], _span(image, size, window, axis, resample)
    places = window[axis] * scale - first, min(window[axis + 2] * scale - first, part.size[axis])
    return _scale_axis(part, axis, places, window[axis + 2] - window[axis], resample)


def _scale_axis(
    image: Image.Image, axis: int, places: tuple[float, float], length: int, resample: Image.Resampling
) -> Image.Image:
    box, size = [0.0, 0.0, *map(float, image.size)], list(image.size)
    box[axis], box[axis + 2], size[axis] = *places, length
    return image.resize((size[0], size[1]), resample, (box[0], box[1], box[2], box[3]))


def _crop_axis(image: Image.Image, axis: int, window: Window) -> Image.Image:
    box = [0, 0, *image.size]
    box[axis], box[axis + 2] = window[axis], window[axis + 2]
    return image.crop((box[0], box[1], box[2], box[3]))


def _nearest(image: Image.Image, size: tuple[int, int], window: Window) -> Image.Image:
    columns, rows = (
        np.minimum(
            ((np.arange(window[axis], window[axis + 2]) + 0.5) * (image.size[axis] / size[axis])).astype(np.intp),
            image.size[axis] - 1,
        )
        for axis in (0, 1)
    )
    part = np.asarray(image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)))
    return Image.fromarray(part[rows - rows[0]][:, columns - columns[0]])
