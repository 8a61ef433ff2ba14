"""`cpt datasets`: list the known data sets, whether their files are here, and how to get them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.shown.dataset_check import show_dataset_check
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.tasks import DataEntry


def datasets(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Shell pattern of names; or check and a path or name, to read all of its samples.",
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
    train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which a fifth is then held out, any .npz file, and any
    text file or folder of train, valid and test text can be given by its path instead, and your own data set by its
    import path, data.name=file.py:factory or package.module:factory.

    `cpt datasets check` decodes all images of a data set and lists its problems: images that cannot be read, files that
    are not read as images, classes that are empty or in one split only, and images that are in both splits. Of a text
    it lists splits that cannot be read, words that training text lacks, and long lines of test text that training text
    has too. The exit code is 5 if a problem prevents training.
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
    from cpt_deploy.workflows import fetch_data, known_data

    if fetch is not None:
        folder = fetch_data(fetch, root)
        out.line(f"{fetch} is in {readable.path(folder)}")
        out.result({"fetched": fetch, "path": folder})
        return
    found = known_data(pattern)
    out.table(
        ("data set", "what", "classes", "train", "test", "here"),
        [(entry.name, entry.summary, *entry.sizes, "yes" if entry.problem is None else "no") for entry in found],
        optional=("classes",),
    )
    for entry in found:
        if entry.problem is not None and len(found) <= 2:
            out.note(f"{entry.problem}\nto get it: {entry.obtain}")
    out.result({"datasets": [_json(entry) for entry in found]})


def _json(entry: "DataEntry") -> dict[str, Any]:
    return {
        "name": entry.name,
        "task": entry.task,
        "summary": entry.summary,
        **entry.facts,
        "obtain": entry.obtain,
        "available": entry.problem is None,
        "problem": entry.problem,
    }


COMMAND = Command(
    datasets,
    "cpt datasets",
    "cpt datasets fashion-mnist  # is it here, and how to get it",
    "cpt datasets 'wikitext*' --json  # corpora",
    "cpt datasets --fetch cifar10",
    "cpt datasets check photos/  # bad images, empty classes, the same image in both splits",
)
