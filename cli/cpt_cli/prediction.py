"""Classifying image files: here with a bundle, or by asking a server. Both answer alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy.errors import ImageError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Prediction

Classifier = Callable[[Path], "list[Prediction]"]
"""Maps an image file to its most probable classes, best first; raises `ImageError` if the file is no image."""


@contextmanager
def local_classifier(bundle: Path, *, top_k: int, threads: int | None) -> Iterator[Classifier]:
    """Classify with a bundle in this process.

    Raises:
        BundleError: If the bundle is missing or damaged.
    """
    from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, decode_image
    from cpt_deploy.bundle import top_k as most_probable

    opened = Bundle.open(bundle)
    model = OnnxRuntimeModel(opened.onnx_path, threads=threads)

    def classify(path: Path) -> "list[Prediction]":
        try:
            image = decode_image(_read(path))
        except ImageError as error:
            raise _naming(path, error) from error
        return most_probable(model.run(opened.preprocessing.apply(image)[None]), opened.labels, top_k)[0]

    yield classify


@contextmanager
def remote_classifier(
    url: str, bundle: Path | None, *, top_k: int, headers: dict[str, str] | None = None
) -> Iterator[Classifier]:
    """Classify by a server.

    Args:
        url: Its address.
        bundle: A bundle that the user believes to be served there, if any; another model gives a warning.
        top_k: How many classes an image gets.
        headers: Headers of every request, such as an API key.

    Raises:
        BundleError: If the bundle is missing or damaged.
        UsageError: If the address is none.
        DataError: While classifying, if the server cannot be reached.
    """
    from cpt_deploy.bundle import Bundle
    from cpt_serving.client import PredictClient

    expected = None if bundle is None else Bundle.open(bundle).name
    with PredictClient(url, headers=headers) as client:

        def classify(path: Path) -> "list[Prediction]":
            nonlocal expected
            content = _read(path)
            try:
                answer = client.predict([content], top_k=top_k)
            except ImageError as error:
                raise _naming(path, error) from error
            if expected not in {None, answer.model}:
                out.warning(f"the server answers with model {answer.model}, not with {expected}")
                expected = None
            return answer.predictions[0]

        yield classify


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected a readable image file at {path}, but got: {error.strerror or error}") from error


def _naming(path: Path, error: ImageError) -> ImageError:
    """Return the error with the file's name in front, unless it is there."""
    if error.message.startswith("Expected a readable image file"):
        return error
    return type(error)(f"{path}: {error.message}", hint=error.hint)
