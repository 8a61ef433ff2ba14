"""`cpt predict`: classify image files with a bundle, here or on a server."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import SHIP_PANEL, Command
from cpt_cli.output import out
from cpt_cli.server_key import ApiKeyOption, key_headers
from cpt_deploy import readable
from cpt_deploy.errors import DataError, ImageError, UsageError

if TYPE_CHECKING:
    from cpt_deploy.workflows import Classifier

BAR_WIDTH = 20


def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A bundle, then image files. With --url the bundle can be left out.", metavar="BUNDLE IMAGE..."
        ),
    ],
    url: Annotated[str | None, typer.Option(help="Use the server at this address instead of computing here.")] = None,
    api_key: ApiKeyOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="all cores")] = None,
) -> None:
    """Classify images: show the most probable classes of each, with probabilities.

    Images are decoded and preprocessed as in the evaluation of training, both here and on the server. A file that is
    not an image is reported, the others are classified, and the exit code is 5.
    """
    from cpt_cli.prediction import remote_classifier
    from cpt_deploy.workflows import image_classifier

    bundle = paths[0] if url is None or paths[0].is_dir() else None
    images = paths if bundle is None else paths[1:]
    if not images:
        raise UsageError(
            "Expected one or more images after the bundle, but got none", hint="cpt predict BUNDLE IMAGE..."
        )
    with ExitStack() as stack:
        if url is not None:
            remote = remote_classifier(url, bundle, top_k=top_k, headers=key_headers(api_key))
            classify = stack.enter_context(remote)
        else:
            classify = image_classifier(paths[0], top_k=top_k, threads=threads)
        results = [_classified(path, classify, alone=len(images) == 1) for path in images]
    _show(results)
    out.result({"results": results})
    failures = sum("error" in result for result in results)
    if failures:
        raise DataError(f"Expected {len(images)} images, but {failures} of them could not be classified")


def _classified(path: Path, classify: "Classifier", *, alone: bool) -> dict[str, Any]:
    """Return the result of one image; an invalid image among several gives an error entry and a warning."""
    try:
        return {"image": path, "predictions": classify(path)}
    except ImageError as error:
        if alone:
            raise
        out.warning(error.message)
        return {"image": path, "error": error.message}


def _show(results: list[dict[str, Any]]) -> None:
    rows = [
        (result["image"], entry.label, readable.share(entry.probability), "█" * round(entry.probability * BAR_WIDTH))
        for result in results
        for entry in result.get("predictions", ())
    ]
    if out.quiet:
        for image, label, probability, _ in rows:
            out.line(f"{image}\t{label}\t{probability}")
    elif rows:
        out.table(("image", "class", "probability", ""), rows)


COMMAND = Command(
    name="predict",
    function=predict,
    panel=SHIP_PANEL,
    examples=(
        "cpt predict runs/digits/bundle-8bit digit.png",
        "cpt predict runs/digits/bundle-8bit *.png --top-k 3 --json",
        "cpt predict --url http://127.0.0.1:8000 digit.png  # on a server",
    ),
)
