"""`cpt range-test`: find min_bits before a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import TRAIN_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_cli.recipes import split_words
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import RangeTest


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
    to_upper: Annotated[bool, typer.Option("--all", help="Continue up to max_bits, to see the whole curve.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write range_test.json and range_test.png to this directory.")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Find the minimum bits at which a network trains: min_bits of its schedule.

    This is the precision range test of the paper: training starts at 2 bits and takes a few steps at each precision
    until the training accuracy rises. `cpt train --bits auto` runs it first and uses its result.
    """
    from cpt_deploy.recipe import load_recipe

    source, overrides = split_words(words or [])
    recipe = load_recipe(source, overrides)
    outcome = run_range_test(recipe, steps=steps, threshold=threshold / 100, to_upper=to_upper, folder=folder)
    out.result({"recipe": recipe.name, **outcome.to_dict()})
    if out.quiet:
        out.line(str(outcome.lower or "none"))
    if outcome.lower is not None:
        given = " ".join(words or [])
        out.hint(f"cpt train {given + ' ' if given else ''}precision.lower={outcome.lower}")


def run_range_test(
    recipe: "Recipe", *, steps: int, threshold: float, to_upper: bool = False, folder: Path | None = None
) -> "RangeTest":
    """Run the test, show its result, and write it to a folder if one is given."""
    from cpt_deploy.training import range_test as run

    with out.bar("range test", steps * (recipe.precision.upper - 1)) as bar:
        outcome = run(
            recipe,
            steps=steps,
            threshold=threshold,
            to_upper=to_upper,
            on_step=lambda done, total, accuracy: bar.advance(done, total, detail=f"train {formats.share(accuracy)}"),
        )
    fields = outcome.to_dict()
    if not out.quiet:
        out.table(("bits", "accuracy before", "after", "rise, points", "± s.e.", "trains"), _rows(outcome))
        lower = "none: accuracy rose at no precision" if outcome.lower is None else f"{outcome.lower} bits"
        out.fields(f"Precision range test of {recipe.name}", {"min_bits": lower})
    if folder is not None:
        _write(folder, fields, recipe.name)
    return outcome


def _rows(outcome: "RangeTest") -> list[tuple[object, ...]]:
    return [
        (
            entry.bits,
            formats.share(entry.before),
            formats.share(entry.after),
            f"{100 * entry.rise:+.2f}",
            f"{100 * entry.standard_error:.2f}",
            "diverged" if entry.diverged else "yes" if entry.exceeds(outcome.threshold) else "no",
        )
        for entry in outcome.progress
    ]


def _write(folder: Path, fields: dict[str, Any], name: str) -> None:
    from cpt_deploy.report import plot_range_test

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "range_test.json").write_text(json.dumps(fields, indent=1) + "\n")
        plot_range_test(fields, folder / "range_test.png", title=f"Precision range test of {name}")
    except OSError as error:
        raise UsageError(f"Expected to write to {formats.path(folder)}, but got: {error.strerror or error}") from error
    out.note(f"wrote {formats.path(folder / 'range_test.png')}")


COMMAND = Command(
    name="range-test",
    function=range_test,
    panel=TRAIN_PANEL,
    examples=(
        "cpt range-test digits-quickstart",
        "cpt range-test fashion-mnist-resnet20 --steps 60 --all --out range/  # the whole curve, with a plot",
    ),
)
