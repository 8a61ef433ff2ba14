"""`cpt predict`: predict image files or rows of tensors with a bundle, here or on a server."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.server_key import ApiKeyOption, key_headers
from cpt_deploy import readable
from cpt_deploy.bundle.layout import SUMS_FILE
from cpt_deploy.errors import DataError, ImageError, UsageError

if TYPE_CHECKING:
    from cpt_cli.prediction import Predictor

BAR_WIDTH = 20


def predict(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A bundle, its run or an ONNX file, then images if it takes them: files, folders of them, or patterns "
            "such as 'photos/*.jpg'. With --url the bundle can be left out.",
            metavar="BUNDLE IMAGE...",
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows of tensors: .npz with an array per input, .json as /predict takes it, or .csv with names first.",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Use the server at this address instead of computing here.")] = None,
    api_key: ApiKeyOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="all cores")] = None,
) -> None:
    """Predict images or rows of tensors: show the most probable classes with probabilities, or the outputs by name.

    Images are decoded and preprocessed as in the evaluation of training, both here and on the server. A file that is
    not an image is reported, the others are classified, and the exit code is 5.
    """
    from cpt_cli.prediction import image_files, local_predictor, predict_rows, read_rows, remote_predictor
    from cpt_deploy.workflows import bundle_at

    given = paths or []
    first = bundle_at(given[0]) if given else None
    bundle = first if first is not None and (url is None or (first / SUMS_FILE).is_file()) else None
    images = given if bundle is None else given[1:]
    if (bundle is None and url is None) or bool(images) == (inputs is not None):
        raise UsageError(
            "Expected images after the bundle, or --inputs, but got "
            + ("both" if images else "no bundle" if bundle is None and url is None else "neither"),
            hint="cpt predict BUNDLE IMAGE...; cpt predict BUNDLE --inputs FILE",
        )
    images = image_files(images)
    rows = None if inputs is None else read_rows(inputs)
    with ExitStack() as stack:
        if url is not None:
            predictor = stack.enter_context(remote_predictor(url, bundle, top_k=top_k, headers=key_headers(api_key)))
        else:
            assert bundle is not None
            predictor = local_predictor(bundle, top_k=top_k, threads=threads)
        if rows is not None:
            _show_rows(predict_rows(predictor, rows))
            return
        results = []
        with out.bar("predicting", len(images)) as bar:
            for path in images:
                results.append(_classified(path, predictor, alone=len(images) == 1))
                bar.advance(len(results))
    _show(results)
    out.result({"results": results})
    failures = sum("error" in result for result in results)
    if failures:
        raise DataError(f"Expected {len(images)} images, but {failures} of them could not be classified")


def _classified(path: Path, predictor: "Predictor", *, alone: bool) -> dict[str, Any]:
    """Return the result of one image; an invalid image among several gives an error entry and a warning."""
    try:
        return {"image": path, "predictions": predictor.image(path)}
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


def _show_rows(predictions: list[Any]) -> None:
    """Show the prediction for each row: outputs by name, or classes."""
    if not isinstance(predictions[0], dict):
        _show([{"image": f"row {number}", "predictions": each} for number, each in enumerate(predictions, start=1)])
    else:
        names = list(predictions[0])
        if out.quiet:
            for each in predictions:
                out.line("\t".join(json.dumps(each[name]) for name in names))
        else:
            lines = [tuple(readable.values(each[name]) for name in names) for each in predictions]
            out.table(("row", *names), [(str(number), *line) for number, line in enumerate(lines, start=1)])
    out.result({"predictions": predictions})


COMMAND = Command(
    predict,
    "cpt predict runs/digits/bundle-8bit digit.png",
    "cpt predict runs/digits photos/ --top-k 3 --json  # the run's bundle; all images in a folder",
    "cpt predict runs/prices/bundle-8bit --inputs houses.csv --json  # rows of tensors",
    "cpt predict --url http://127.0.0.1:8000 digit.png  # on a server",
)
