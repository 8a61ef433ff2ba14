"""`cpt predict`: classify image files with a bundle here, or with a server that serves one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy.errors import DataError


BAR_WIDTH = 20


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote; with --url its name there.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    url: Annotated[str | None, typer.Option(help="Ask the server at this address instead of computing here.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.", show_default="all cores")] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Classify images: the most probable classes of each, with probabilities.

    Images go through the same decoding and preprocessing as in training's evaluation, here and on the server.
    A file that is no image is reported, the others are classified, and the exit code is 5.
    """
    from cpt_cli.prediction import local_classifier, remote_classifier

    classify = remote_classifier(url, bundle, top_k) if url else local_classifier(bundle, top_k, threads)
    results: list[dict[str, Any]] = []
    failures: list[DataError] = []
    for path in images:
        try:
            results.append({"image": path, "predictions": classify(path)})
        except DataError as error:
            if len(images) == 1:
                raise
            failures.append(error)
            results.append({"image": path, "error": error.message})
            out.warning(error.message)
    _show(results)
    out.result({"results": results})
    if failures:
        raise DataError(f"Expected {len(images)} images, but {len(failures)} of them could not be classified")


def _show(results: list[dict[str, Any]]) -> None:
    rows = [
        (result["image"], prediction["label"], formats.share(prediction["probability"]), _bar(prediction["probability"]))
        for result in results
        for prediction in result.get("predictions", ())
    ]
    if out.quiet:
        for image, label, probability, _ in rows:
            out.line(f"{image}\t{label}\t{probability}")
    elif rows:
        out.table(("image", "class", "probability", ""), rows)


def _bar(probability: float) -> str:
    return "█" * round(probability * BAR_WIDTH)


COMMAND = Command(
    name="predict",
    function=predict,
    panel=SHIP_PANEL,
    examples=(
        "cpt predict runs/digits/bundle-8bit digit.png",
        "cpt predict runs/digits/bundle-8bit *.png --top-k 3 --json",
        "cpt predict digits digit.png --url http://127.0.0.1:8000  # ask a server",
    ),
)
