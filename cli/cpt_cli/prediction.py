"""Predicting with a bundle in this process, or on a server; both take the same requests and give the same answers."""

import csv
import glob
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cpt_cli.output import out
from cpt_deploy import readable
from cpt_deploy.errors import DataError, ImageError, UsageError
from cpt_deploy.image_files import SUFFIXES, images_below

Body = Mapping[str, Any]
"""JSON of a request to `/predict`: rows by column in `inputs`, or one after the other in `instances`."""

_ROWS_AT_ONCE = 32


class Predictor(NamedTuple):
    """Two functions that predict.

    Args:
        image: Returns the most probable classes of an image file, best first; raises `ImageError` if it is no image.
        rows: Returns the prediction for each row; raises `UsageError` for rows that the model does not take.
        ranks: Number of dimensions of each input, if requests are computed one by one and hold whole tensors.
    """

    image: Callable[[Path], Any]
    rows: Callable[[Body], list[Any]]
    ranks: Mapping[str, int] = {}


def image_files(given: Sequence[Path]) -> list[Path]:
    """Return image files: of a folder those in it and below, sorted; of a shell pattern those that match.

    Raises:
        DataError: If a folder has no images, or nothing matches a pattern.
    """
    found: list[Path] = []
    for path in given:
        matches = [path]
        if not path.exists() and glob.has_magic(str(path)):
            # Path.glob takes no absolute patterns.
            matches = sorted(map(Path, glob.glob(str(path.expanduser()), recursive=True)))  # noqa: PTH207
        files = [file for match in matches for file in (images_below(match) if match.is_dir() else [match])]
        if not files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(f"Expected images at {path}, but found none", hint=f"files that count as images: {kinds}")
        found += dict.fromkeys(files)
    return found


def local_predictor(path: Path, *, top_k: int, threads: int | None) -> Predictor:
    """Return functions that predict as a server of the bundle does.

    Raises:
        BundleError: If the bundle is missing or damaged.
    """
    import orjson

    from cpt_deploy.bundle import Bundle, TextProcessor
    from cpt_deploy.bundle.bare import bundle_of_file
    from cpt_serving.adapters import adapter_of
    from cpt_serving.inference.memory import MemoryBudget
    from cpt_serving.inference.threads import Work
    from cpt_serving.settings import local_settings
    from cpt_serving.web.errors import RequestError, as_request_error
    from cpt_serving.web.uploads import EncodedImage

    settings = local_settings(path, threads)
    bundle = bundle_of_file(path) if path.is_file() else Bundle.open(path)
    adapter = adapter_of(bundle, settings, MemoryBudget(settings.decode_bytes))
    adapter.load()

    def predict(content: list[EncodedImage] | bytes) -> list[Any]:
        (outcome,) = adapter.run([adapter.receive(content).read(Work())])
        if isinstance(outcome, Exception):
            raise outcome
        return list(adapter.predictions(outcome, top_k))

    def image(file: Path) -> Any:
        if isinstance(bundle.processor, TextProcessor):
            raise UsageError(
                f"Expected --inputs with rows of {[bundle.signature.inputs[0].name]}, since "
                f"{bundle.name} reads text, but got {file}",
                hint=f"cpt generate {readable.argument(path)} TEXT",
            )
        try:
            return predict([EncodedImage(str(file), _content(file))])[0]
        except RequestError as error:
            refused = UsageError if error.status == 415 else ImageError
            raise refused(f"{file}: {error.message}") from error

    def rows(body: Body) -> list[Any]:
        try:
            predictions = predict(orjson.dumps(body))
        except (RequestError, UsageError) as error:
            raise UsageError(as_request_error(error).message) from error
        if isinstance(predictions[0], list):
            return predictions
        plain: list[Any] = orjson.loads(orjson.dumps(predictions, option=orjson.OPT_SERIALIZE_NUMPY))
        return plain

    signature = bundle.signature
    ranks = {} if signature.joins_rows else {spec.name: len(spec.whole_shape) for spec in signature.inputs}
    return Predictor(image, rows, ranks)


@contextmanager
def remote_predictor(
    url: str, bundle: Path | None, *, top_k: int, headers: dict[str, str] | None = None
) -> Iterator[Predictor]:
    """Return functions that predict on a server.

    Args:
        url: Address of the server.
        bundle: Bundle that the user expects to be served there, if any; another model gives a warning.
        top_k: Number of classes for each image.
        headers: Headers of every request, such as an API key.

    Raises:
        BundleError: If the bundle is missing or damaged.
        UsageError: If the address is invalid.
        DataError: While predicting, if the server cannot be reached.
    """
    from cpt_deploy.bundle import Bundle
    from cpt_serving.client import Answer, PredictClient

    expected = None if bundle is None else Bundle.open(bundle).name
    with PredictClient(url, headers=headers) as client:

        def of_model(answer: Answer) -> list[Any]:
            nonlocal expected
            if expected not in {None, answer.model}:
                out.warning(f"the server answers with model {answer.model}, not with {expected}")
                expected = None
            return answer.predictions

        def image(path: Path) -> Any:
            content = _content(path)
            try:
                return of_model(client.predict([content], top_k=top_k))[0]
            except ImageError as error:
                raise type(error)(f"{path}: {error.message}", hint=error.hint) from error

        yield Predictor(image, lambda body: of_model(client.predict_rows(body, top_k=top_k)))


def predict_rows(predictor: Predictor, body: Body) -> list[Any]:
    """Return the prediction for each row of a body, in requests of a few rows each."""
    ((key, given),) = body.items()
    columns = given if isinstance(given, Mapping) else {"": given}
    predictions: list[Any] = []
    if predictor.ranks and isinstance(given, Mapping):
        several = all(_rank(given.get(name)) == rank + 1 for name, rank in predictor.ranks.items())
        counts = {name: len(calls) for name, calls in given.items()} if several else {}
        if len({*counts.values()}) > 1:
            found = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UsageError(f"Expected inputs of equally many calls, but got {found}")
        whole: Iterable[tuple[Any, ...]] = zip(*given.values(), strict=True) if several else [tuple(given.values())]
        return [predictor.rows({key: dict(zip(given, row, strict=True))})[0] for row in whole]
    for start in range(0, max(map(len, columns.values()), default=0), _ROWS_AT_ONCE):
        part = {name: rows[start : start + _ROWS_AT_ONCE] for name, rows in columns.items()}
        predictions += predictor.rows({key: part if isinstance(given, Mapping) else part[""]})
    return predictions


def _rank(values: Any) -> int:
    """Return the number of dimensions of nested lists."""
    return 1 + _rank(values[0]) if isinstance(values, list) and values else int(isinstance(values, list))


def read_rows(path: Path) -> Body:
    """Return the rows of a file as a request: arrays of a .npz by name, a .json, or the lines of a .csv.

    JSON is a request to `/predict`, a list of rows, or an object with the rows of each input. The first line of a CSV
    file holds the names of inputs or features, unless it is numbers.

    Raises:
        DataError: If the file cannot be read.
        UsageError: If it is of another type.
    """
    readers = {".npz": _read_npz, ".json": _read_json, ".csv": _read_csv}
    if path.suffix not in readers:
        raise UsageError(f"Expected a file {', '.join(readers)}, but got {path}")
    try:
        body = readers[path.suffix](path)
    except (OSError, ValueError, RecursionError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"Expected rows in {path}, but got: {getattr(error, 'strerror', None) or error}") from error
    given = next(iter(body.values()))
    columns = given.values() if isinstance(given, dict) else [given]
    if not columns or not all(isinstance(rows, list) and rows for rows in columns):
        raise DataError(f"Expected lists of rows in {path}, but got others, or none")
    return body


def _read_npz(path: Path) -> Body:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {"inputs": {name: np.atleast_1d(array).tolist() for name, array in arrays.items()}}


def _read_json(path: Path) -> Body:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and len(content) == 1 and content.keys() <= {"inputs", "instances"}:
        return content
    return {"instances" if isinstance(content, list) else "inputs": content}


def _read_csv(path: Path) -> Body:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError("an empty file")
    named = not all(map(_is_number, lines[0]))
    rows = [[_number(cell) for cell in line] for line in lines[named:]]
    return {"instances": [dict(zip(lines[0], row, strict=True)) for row in rows] if named else rows}


def _number(cell: str) -> int | float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"Expected a readable image file at {path}, but got: {error.strerror or error}") from error
