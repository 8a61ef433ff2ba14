"""`cpt range-test`: find min_bits before a run."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.recipes import split_words
from cpt_cli.shown.range_test import show_range_test


def range_test(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A preset or a recipe file, then settings such as model.name=resnet38, as for cpt train.",
            metavar="[PRESET_OR_FILE] [KEY=VALUE]...",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=4, help="Steps at each precision.")] = 100,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Rise of training accuracy, in points, that counts as progress.")
    ] = 1.0,
    to_max_bits: Annotated[
        bool, typer.Option("--all", help="Continue up to max_bits, to see the whole curve.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write range_test.json and range_test.png to this directory.")
    ] = None,
) -> None:
    """Find the minimum bits at which a network trains: min_bits of its schedule.

    This is the precision range test of the paper: training starts at 2 bits and takes a few steps at each precision
    until the training accuracy rises. `cpt train --bits auto` runs it first and uses its result.
    """
    from cpt_deploy.recipe import load_recipe
    from cpt_deploy.workflows import find_lower_bound

    source, overrides = split_words(words or [])
    recipe = load_recipe(source, overrides)
    outcome = find_lower_bound(
        recipe, steps=steps, threshold=threshold / 100, to_max_bits=to_max_bits, folder=folder, reporter=out
    )
    show_range_test(outcome, recipe.name, folder)
    out.result({"recipe": recipe.name, **outcome.to_dict()})
    if out.quiet:
        out.line(str(outcome.min_bits or "none"))
    if outcome.min_bits is not None:
        given = " ".join(words or [])
        out.hint(f"cpt train {given + ' ' if given else ''}precision.min_bits={outcome.min_bits}")


COMMAND = Command(
    range_test,
    "cpt range-test digits-quickstart",
    "cpt range-test fashion-mnist-resnet20 --steps 60 --all --out range/  # the whole curve, with a plot",
)
