"""`cpt models`: list the networks that can be trained, with their sizes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.tasks import ModelEntry


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
            help="Number of classes, or of different tokens.",
            show_default="10; torchvision and timm 1000; tokens 10000",
        ),
    ] = None,
) -> None:
    """List models that `cpt train` knows, with parameters and multiply-accumulates (MACs) per image or token.

    They are listed by task. Your own model is given by its import path: model.name=file.py:factory.
    """
    from cpt_deploy.tasks import ModelSize
    from cpt_deploy.workflows import known_models

    found = known_models(pattern, ModelSize(channels, size, classes), counted=not out.quiet)
    for entry in found:
        if entry.problem is not None:
            out.warning(entry.problem)
    out.table(("model", "parameters", "MACs", "input", "classes"), [_cells(entry) for entry in found])
    if not pattern:
        out.note("those of torchvision: cpt models 'torchvision/*'; timm's: cpt models 'timm/*'")
    out.result({"models": [_json(entry, counted=not out.quiet) for entry in found]})


def _cells(entry: "ModelEntry") -> tuple[str, ...]:
    figures = ["-" if figure is None else readable.count(figure) for figure in (entry.parameters, entry.macs)]
    return (entry.name, *figures, entry.input, entry.classes)


def _json(entry: "ModelEntry", *, counted: bool) -> dict[str, Any]:
    if not counted:
        return {"name": entry.name}
    counts = {"parameters": entry.parameters, "macs": entry.macs}
    return {"name": entry.name, "task": entry.task, **entry.facts, **counts}


COMMAND = Command(
    models,
    "cpt models",
    "cpt models 'torchvision/resnet*'",
    "cpt models '*-lm' --classes 33278  # with the words of wikitext-2",
    "cpt models resnet20 --channels 1 --size 28  # as on Fashion-MNIST",
)
