"""The bundle's golden inputs as images, and what a drawing has to look like to resemble them."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy.bundle import Bundle

LARGEST_DRAWN_SIDE = 64
"""Inputs with longer sides are photographs rather than something to draw."""

_STROKE = 0.1
_INK_CONTRAST = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """A golden input and the class that the exact executor gave it at export.

    Args:
        index: Its number; the image is at `/samples/{index}.png`.
        label: The class.
    """

    index: int
    label: str


@dataclass(frozen=True, slots=True)
class DrawingStyle:
    """What the samples look like, for a drawing to resemble them.

    Args:
        ground: Whether the ink is bright on dark or dark on light.
        fill: How much of the side the longer side of a sample's ink spans, 0..1.
        stroke: Width of a line as a share of the side.
    """

    ground: Literal["dark", "light"]
    fill: float
    stroke: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What the page offers beside files: samples, and for small grey inputs a place to draw."""

    samples: list[Sample]
    drawing: DrawingStyle | None


def sample_pixels(bundle: Bundle, index: int) -> npt.NDArray[np.uint8]:
    """Return a golden input as the pixels that it was normalised from, uint8 (H, W, C).

    Raises:
        IndexError: If there are not that many.
    """
    preprocessing = bundle.preprocessing
    mean, std = (np.asarray(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    pixels = np.clip(np.rint((bundle.golden.inputs[index] * std + mean) * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def sample_image(bundle: Bundle, index: int) -> Image.Image:
    """Return a golden input as an image of the model's input size."""
    pixels = sample_pixels(bundle, index)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def list_samples(bundle: Bundle) -> list[Sample]:
    """Return the golden inputs with their classes, in their order."""
    best = bundle.golden.logits.argmax(axis=1)
    return [Sample(index, bundle.labels[label]) for index, label in enumerate(best)]


def drawing_style(bundle: Bundle) -> DrawingStyle | None:
    """Return how to draw for a model of small grey images; `None` for others."""
    if bundle.preprocessing.channels != 1 or max(bundle.preprocessing.size) > LARGEST_DRAWN_SIDE:
        return None
    pixels = np.stack([sample_pixels(bundle, index)[:, :, 0] for index in range(len(bundle.golden.inputs))])
    border = np.concatenate([pixels[:, [0, -1]].ravel(), pixels[:, :, [0, -1]].ravel()])
    ground = float(np.median(border))
    ink = np.abs(pixels - ground) > _INK_CONTRAST * 255
    spans = [max(_span(image.any(axis=0)), _span(image.any(axis=1))) for image in ink if image.any()]
    return DrawingStyle(
        ground="dark" if ground < 128 else "light",
        fill=round(float(np.mean(spans)), 3) if spans else 1.0,
        stroke=_STROKE,
    )


def _span(marked: npt.NDArray[np.bool_]) -> float:
    """Return the share of a line from the first marked position to the last."""
    positions = np.flatnonzero(marked)
    return float(positions[-1] - positions[0] + 1) / len(marked)
