"""Classifying image files on a server, with the same results as `cpt_deploy.workflows.image_classifier`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy.errors import ImageError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Prediction
    from cpt_deploy.workflows import Classifier


@contextmanager
def remote_classifier(
    url: str, bundle: Path | None, *, top_k: int, headers: dict[str, str] | None = None
) -> Iterator["Classifier"]:
    """Return a function that classifies on a server.

    Args:
        url: Address of the server.
        bundle: Bundle that the user expects to be served there, if any; another model gives a warning.
        top_k: Number of classes for each image.
        headers: Headers of every request, such as an API key.

    Raises:
        BundleError: If the bundle is missing or damaged.
        UsageError: If the address is invalid.
        DataError: While classifying, if the server cannot be reached.
    """
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.workflows.prediction import naming, read_image
    from cpt_serving.client import PredictClient

    expected = None if bundle is None else Bundle.open(bundle).name
    with PredictClient(url, headers=headers) as client:

        def classify(path: Path) -> "list[Prediction]":
            nonlocal expected
            content = read_image(path)
            try:
                answer = client.predict([content], top_k=top_k)
            except ImageError as error:
                raise naming(path, error) from error
            if expected not in {None, answer.model}:
                out.warning(f"the server answers with model {answer.model}, not with {expected}")
                expected = None
            return answer.predictions[0]

        yield classify
