"""`cpt models`: list the networks that can be trained, with their sizes."""

from typing import Annotated, Any

import typer

from cpt_cli.command import LOOK_PANEL, Command
from cpt_cli.output import out
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

_OWN_SHAPE = (3, 32, 10)
_LIBRARY_SHAPE = (3, 224, 1000)
_VOCABULARY = 10000
"""Number of different words of the Penn Treebank."""


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Shell pattern of names, such as 'resnet*'; without it, the project's own models."),
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Channels of the images.", show_default="3")] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width of the images.", show_default="32; torchvision and timm 224"),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of classes, or of a language model's tokens.",
            show_default="10; torchvision and timm 1000; tokens 10000",
        ),
    ] = None,
) -> None:
    """List the models that `cpt train` knows, with parameters and multiply-accumulates (MACs) per image or token.

    Language models are listed after image models. Your own model is given by its import path:
    model.name=package.module:factory.
    """
    from cpt_deploy.models import model_names
    from cpt_deploy.models.language import language_model_names
    from cpt_deploy.registry import nearest_names

    images, text = model_names(pattern or "*"), language_model_names(pattern or "*")
    names = images if pattern else [name for name in images if "/" not in name]
    if not names and not text:
        known = [*model_names(), *language_model_names()]
        raise UsageError(
            f"Expected a pattern that matches a model, but got {pattern!r}", hint=nearest_names(pattern or "", known)
        )
    measured = [{"name": name} if out.quiet else _measure(name, channels, size, classes) for name in names]
    rows = [*measured, *({"name": name} if out.quiet else _measure_text(name, classes) for name in text)]
    out.table(("model", "parameters", "MACs", "input", "classes"), [_cells(row) for row in rows])
    if not pattern:
        out.note(
            f"and {len(images) - len(names)} of torchvision: cpt models 'torchvision/*'; timm's: cpt models 'timm/*'"
        )
    out.result({"models": rows})


def _measure(name: str, channels: int | None, size: int | None, classes: int | None) -> dict[str, Any]:
    from cpt_deploy.models import describe_model

    usual = _LIBRARY_SHAPE if "/" in name else _OWN_SHAPE
    in_channels, side, num_classes = channels or usual[0], size or usual[1], classes or usual[2]
    row: dict[str, Any] = {
        "name": name,
        "task": "classification",
        "input": [in_channels, side, side],
        "classes": num_classes,
    }
    try:
        summary = describe_model(name, num_classes=num_classes, in_channels=in_channels, input_size=(side, side))
    except UsageError as error:
        out.warning(error.message)
        return {**row, "parameters": None, "macs": None}
    return {**row, "parameters": summary.parameters, "macs": summary.macs}


def _measure_text(name: str, vocabulary: int | None) -> dict[str, Any]:
    from cpt_deploy.models.language import describe_language_model

    tokens = vocabulary or _VOCABULARY
    summary = describe_language_model(name, tokens)
    row = {"name": name, "task": "language-model", "input": [1], "classes": tokens}
    return {**row, "parameters": summary.parameters, "macs": summary.macs}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    figures = [readable.count(row[key]) if row.get(key) is not None else "-" for key in ("parameters", "macs")]
    if row.get("task") == "language-model":
        return (row["name"], *figures, "one token", f"{row['classes']:,} tokens")
    return (row["name"], *figures, " x ".join(map(str, row.get("input", ()))), str(row.get("classes", "")))


COMMAND = Command(
    models,
    LOOK_PANEL,
    "cpt models",
    "cpt models 'torchvision/resnet*'",
    "cpt models '*-lm' --classes 33278  # language models, with the words of wikitext-2",
    "cpt models resnet20 --channels 1 --size 28  # as on Fashion-MNIST",
)
