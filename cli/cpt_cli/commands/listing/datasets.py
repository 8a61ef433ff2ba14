"""`cpt datasets`: list the known data sets, whether their files are here, and how to get them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cpt_cli.command import LOOK_PANEL, Command
from cpt_cli.output import out
from cpt_cli.shown.dataset_check import show_dataset_check
from cpt_deploy import readable
from cpt_deploy.errors import CptError, UsageError


def datasets(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Shell pattern of names; or check and a folder or name, to decode all of its images.",
            metavar="[PATTERN] | check NAME_OR_PATH",
            show_default=False,
        ),
    ] = None,
    fetch: Annotated[
        str | None, typer.Option(help="Download this data set; nothing is downloaded without it.", metavar="NAME")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder for --fetch to write to, or for check to read.", show_default="the user's cache"),
    ] = None,
) -> None:
    """List the known data sets and texts, and which of them are on this machine.

    They are searched in data.root of the recipe, in $CPT_DATA_DIR/NAME and in the user's cache. Any folder with
    train/CLASS/*.jpg and val/CLASS/*.jpg, any .npz file, and any text file or folder of train, valid and test text can
    be given by its path instead, and your own data set by its import path, data.name=package.module:factory.

    `cpt datasets check` decodes all images of a data set and lists its problems: images that cannot be read, files that
    are not read as images, classes that are empty or in one split only, and images that are in both splits. The
    exit code is 5 if a problem prevents training.
    """
    pattern, *rest = words or ["*"]
    if pattern == "check" or rest:
        if pattern != "check" or len(rest) != 1 or fetch is not None:
            raise UsageError(
                f"Expected a pattern of names, or check and one folder or name, but got {' '.join(words or [])!r}",
                hint="cpt datasets check photos/",
            )
        show_dataset_check(rest[0], root)
        return
    from cpt_deploy.data import datasets as known
    from cpt_deploy.data import fetch_dataset
    from cpt_deploy.data.text import corpora
    from cpt_deploy.registry import nearest_names

    if fetch is not None:
        if fetch in corpora:
            raise UsageError(
                f"Expected a data set that can be downloaded, but got {fetch!r}", hint=corpora.get(fetch).obtain
            )
        folder = fetch_dataset(fetch, root)
        out.line(f"{fetch} is in {readable.path(folder)}")
        out.result({"fetched": fetch, "path": folder})
        return
    rows = [*map(_look_for, known.names(pattern)), *map(_look_for_text, corpora.names(pattern))]
    if not rows:
        hint = nearest_names(pattern, [*known.names(), *corpora.names()])
        raise UsageError(f"Expected a pattern that matches a data set, but got {pattern!r}", hint=hint)
    out.table(
        ("data set", "what", "classes", "train", "test", "here"),
        [(row["name"], row["summary"], *_sizes(row), "yes" if row["available"] else "no") for row in rows],
    )
    for row in rows:
        if not row["available"] and len(rows) <= 2:
            out.note(f"{row['problem']}\nto get it: {row['obtain']}")
    out.result({"datasets": rows})


def _look_for(name: str) -> dict[str, Any]:
    from cpt_deploy.data import datasets as known
    from cpt_deploy.data import load_images

    info = known.get(name)
    row = {
        "name": name,
        "task": "classification",
        "summary": info.summary,
        "classes": info.classes,
        "images": info.images,
        "obtain": info.obtain,
    }
    return {**row, **_found(lambda: load_images(name, split="test"))}


def _look_for_text(name: str) -> dict[str, Any]:
    from cpt_deploy.data.text import corpora, load_corpus

    info = corpora.get(name)
    row = {
        "name": name,
        "task": "language-model",
        "summary": info.summary,
        "words": info.types or None,
        "tokens": dict(zip(("train", "valid", "test"), info.tokens, strict=False)),
        "obtain": info.obtain,
    }
    return {**row, **_found(lambda: load_corpus(name))}


def _found(opened: Callable[[], object]) -> dict[str, Any]:
    """Return whether data can be opened, and the problem if not."""
    try:
        opened()
    except CptError as error:
        return {"available": False, "problem": error.message}
    return {"available": True, "problem": None}


def _sizes(row: dict[str, Any]) -> tuple[object, object, object]:
    """Return classes and sizes for the table; for a single-file text, the shares into which it is divided."""
    if row["task"] == "classification":
        return (row["classes"], *row["images"])
    tokens = row["tokens"]
    if not tokens:
        return ("", "90 %", "5 %")
    return (f"{row['words']:,} words", f"{tokens['train']:,} words", f"{tokens['test']:,} words")


COMMAND = Command(
    datasets,
    LOOK_PANEL,
    "cpt datasets",
    "cpt datasets fashion-mnist  # is it here, and how to get it",
    "cpt datasets 'wikitext*' --json  # texts of language models",
    "cpt datasets --fetch cifar10",
    "cpt datasets check photos/  # bad images, empty classes, the same image in both splits",
)
