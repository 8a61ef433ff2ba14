"""Classify image files with a bundle, without a server."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.errors import ImageError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Prediction

Classifier = Callable[[Path], "list[Prediction]"]
"""Function from an image file to its most probable classes, best first; raises `ImageError` if it is no image."""


def image_classifier(bundle: Path, *, top_k: int = 1, threads: int | None = None) -> Classifier:
    """Return a function that classifies image files as a server of the bundle does.

    Args:
        bundle: The bundle.
        top_k: Number of classes per image.
        threads: Number of threads; None is all cores.

    Raises:
        BundleError: If the bundle is missing or damaged.
    """
    from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, decode_image

    opened = Bundle.open(bundle)
    processor = opened.expect_processor(ImageProcessor)
    model = OnnxRuntimeModel(opened.onnx_path, opened.signature, threads=threads)

    def classify(path: Path) -> "list[Prediction]":
        try:
            image = decode_image(read_image(path))
        except ImageError as error:
            raise naming(path, error) from error
        return processor.answers(model.run(processor.inputs([image])), top_k)[0]

    return classify


def read_image(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: If the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected a readable image file at {path}, but got: {error.strerror or error}") from error


def naming(path: Path, error: ImageError) -> ImageError:
    """Return an error about an image with the file's name as prefix, unless the message has it."""
    if error.message.startswith("Expected a readable image file"):
        return error
    return type(error)(f"{path}: {error.message}", hint=error.hint)
