"""`cpt datasets`: which data sets are known, whether their files are here, and how to get them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import LOOK_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy.errors import CptError, UsageError


def datasets(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names.")] = "*",
    fetch: Annotated[
        str | None, typer.Option(help="Download this data set; nothing is ever downloaded otherwise.", metavar="NAME")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where --fetch puts it.", show_default="the user's cache")] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """List the known data sets, and which of them are on this machine.

    They are looked for in data.root of the recipe, in $CPT_DATA_DIR/NAME and in the user's cache. Any folder with
    train/CLASS/*.jpg and val/CLASS/*.jpg, and any .npz file, can be named by its path instead; your own data set by
    its import path, data.name=package.module:factory.
    """
    from cpt_deploy.data import dataset_names, fetch_dataset
    from cpt_deploy.registry import nearest_names

    if fetch is not None:
        folder = fetch_dataset(fetch, root)
        out.line(f"{fetch} is in {formats.path(folder)}")
        out.result({"fetched": fetch, "path": folder})
        return
    names = dataset_names(pattern)
    if not names:
        hint = nearest_names(pattern, dataset_names())
        raise UsageError(f"Expected a pattern that matches a data set, but got {pattern!r}", hint=hint)
    rows = [_look_for(name) for name in names]
    out.table(
        ("data set", "what", "classes", "train", "test", "here"),
        [
            (row["name"], row["summary"], row["classes"], *row["images"], "yes" if row["available"] else "no")
            for row in rows
        ],
    )
    for row in rows:
        if not row["available"] and len(rows) <= 2:
            out.note(f"{row['problem']}\nto get it: {row['obtain']}")
    out.result({"datasets": rows})


def _look_for(name: str) -> dict[str, Any]:
    from cpt_deploy.data import dataset_info, load_images

    info = dataset_info(name)
    row = {"name": name, "summary": info.summary, "classes": info.classes, "images": info.images, "obtain": info.obtain}
    try:
        load_images(name, split="test")
    except CptError as error:
        return {**row, "available": False, "problem": error.message}
    return {**row, "available": True, "problem": None}


COMMAND = Command(
    name="datasets",
    function=datasets,
    panel=LOOK_PANEL,
    examples=(
        "cpt datasets",
        "cpt datasets fashion-mnist  # is it here, and how to get it",
        "cpt datasets --fetch cifar10",
    ),
)
