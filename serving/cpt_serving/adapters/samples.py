"""A bundle's golden inputs for the page: rows of JSON; or images, and the style of drawings that resemble them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy.bundle.golden import Golden
from cpt_deploy.bundle.processors.image_processor import ImageProcessor
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME

LARGEST_DRAWN_SIDE = 64
"""Inputs with longer sides are photographs, which nobody draws."""

_STROKE = 0.1
_INK_CONTRAST = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """A golden input and the class that the executor computed for it at export.

    Args:
        index: Number of the input; its image is at `/samples/{index}.png`.
        label: Name of the class.
    """

    index: int
    label: str


@dataclass(frozen=True, slots=True)
class DrawingStyle:
    """The style of the samples, which a drawing should resemble.

    Args:
        ground: Brightness of the background.
        fill: Share of the image's side that the longer side of a sample's ink spans, 0..1.
        stroke: Width of a line as a share of the image's side.
    """

    ground: Literal["dark", "light"]
    fill: float
    stroke: float


@dataclass(frozen=True, slots=True)
class Samples:
    """The inputs that the page offers besides the user's own.

    Args:
        samples: Images of the golden sample.
        drawing: Style of a drawing, of models of small grey images.
        rows: A row of each input as `/predict` takes it, of models that take tensors.
    """

    samples: list[Sample] = field(default_factory=list)
    drawing: DrawingStyle | None = None
    rows: Mapping[str, Any] | None = None


def sample_pixels(processor: ImageProcessor, golden: Golden, index: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of a golden input before normalisation, uint8 (H, W, C).

    Raises:
        IndexError: If there is no input of this number.
    """
    return processor.pixels_of(golden.inputs[INPUT_NAME][index])


def sample_image(processor: ImageProcessor, golden: Golden, index: int) -> Image.Image:
    """Return a golden input as an image of the model's input size."""
    pixels = sample_pixels(processor, golden, index)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def list_samples(processor: ImageProcessor, golden: Golden) -> list[Sample]:
    """Return the golden inputs with their classes, in order."""
    best = golden.outputs[OUTPUT_NAME].argmax(axis=1)
    return [Sample(index, processor.labels[label]) for index, label in enumerate(best)]


def drawing_style(processor: ImageProcessor, golden: Golden) -> DrawingStyle | None:
    """Return the drawing style of a model of small grey images; `None` for other models."""
    if processor.preprocessing.channels != 1 or max(processor.preprocessing.size) > LARGEST_DRAWN_SIDE:
        return None
    pixels = np.stack(
        [sample_pixels(processor, golden, index)[:, :, 0] for index in range(len(golden.inputs[INPUT_NAME]))]
    )
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
    """Return the share of a line between its first and its last marked position."""
    positions = np.flatnonzero(marked)
    return float(positions[-1] - positions[0] + 1) / len(marked)
