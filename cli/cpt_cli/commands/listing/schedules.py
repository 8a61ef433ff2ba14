"""`cpt schedules`: show the bits of precision schedules over a run, and their cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.recipes import parse_bounds
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_cli.shown.schedules import ShownSchedule
    from cpt_deploy.precision import PrecisionSchedule

LINE_WIDTH = 24
SHOWN_CYCLES = 4
"""Maximum number of cycles that are visible in a line of `LINE_WIDTH`."""


def schedules(  # noqa: PLR0913, PLR0917  the options are its parameters
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, short names such as RTH, or your own as package.module:schedule.",
            show_default="all cyclic schedules",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Show the schedules of a preset or a recipe file: forward, groups, gradients.")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bounds of the bits: MIN-MAX.")] = "3-8",
    cycles: Annotated[int, typer.Option(min=1, help="Cycles in the run.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 6400,
    grad_bits: Annotated[
        str, typer.Option(help="Bits of the gradients, for the cost: a number, or MIN-MAX for scheduled bits.")
    ] = "8",
    grad_schedule: Annotated[
        str, typer.Option(help="Schedule of the gradients, if their bits are scheduled.", show_default="cosine")
    ] = "cosine",
    losses: Annotated[
        Path | None,
        typer.Option(
            help="Training losses for the progressive schedule: metrics.csv of a run, or one loss per line and epoch."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into this PNG or SVG file.")] = None,
) -> None:
    """Show precision schedules: their bits over a run, their mean, and the BitOPs they save against static bits.

    The ten schedules of Wolfe & Kyrillidis (2024) are shown with their short names and their groups of saving;
    `cosine` is the schedule of the CPT paper. `progressive` is FracTrain's: its bits rise when the training loss is
    flat, so they are known only with --losses. In a recipe, set precision.schedule.
    """
    from cpt_cli.shown.schedules import read_losses, show_recipe

    known_losses = [] if losses is None else read_losses(losses)
    if recipe is not None:
        from cpt_deploy.recipe import load_recipe

        if names:
            raise UsageError("Expected names of schedules or --recipe, but got both")
        settings = load_recipe(recipe)
        shown, shown_cycles = show_recipe(settings, steps, known_losses), settings.precision.cycles
        title = f"{settings.name}, {shown_cycles} cycles"
    else:
        shown, shown_cycles = _by_name(names, bits, cycles, steps, (grad_schedule, grad_bits), known_losses), cycles
        title = f"{bits} bits, {cycles} cycles, gradients at {grad_bits} bits"
    _table(shown, steps, shown_cycles, title)
    if any(entry.follows_loss for entry in shown):
        out.note("progressive bits depend on the training loss; --losses RUN/metrics.csv shows them for that of a run")
    if plot is not None:
        _draw(shown, plot, title)
    out.result({"schedules": [entry.to_dict() for entry in shown]})


def _by_name(
    names: list[str] | None, bits: str, cycles: int, steps: int, gradients: tuple[str, str], losses: list[float]
) -> "list[ShownSchedule]":
    from cpt_cli.shown.schedules import show_schedule
    from cpt_deploy.precision import build_schedule
    from cpt_deploy.precision import schedules as known

    min_bits, max_bits = parse_bounds(bits)
    chosen = names or [name for name in known if name not in ("static", "piecewise", "progressive")]
    shown = []
    for name in chosen:
        points = [(0.0, min_bits), (0.5, max_bits)] if name == "piecewise" else None
        schedule = build_schedule(name, min_bits=min_bits, max_bits=max_bits, cycles=cycles, points=points)
        backward = _backward(*gradients, cycles)
        shown.append(show_schedule(_long_name(name), schedule, backward, max_bits, steps, losses))
    return shown


def _backward(name: str, bits: str, cycles: int) -> "PrecisionSchedule":
    from cpt_deploy.precision import build_schedule

    if bits.isdigit():
        return build_schedule("static", min_bits=int(bits), max_bits=int(bits))
    min_bits, max_bits = parse_bounds(bits, "--grad-bits")
    return build_schedule(name, min_bits=min_bits, max_bits=max_bits, cycles=cycles)


def _table(shown: "list[ShownSchedule]", steps: int, cycles: int, title: str) -> None:
    whole = cycles <= SHOWN_CYCLES or not all(entry.has_cycles for entry in shown)
    visible = steps if whole else -(-steps * SHOWN_CYCLES // cycles)
    out.table(
        (
            "schedule",
            "short",
            "bits over the run" if visible == steps else f"bits, first {SHOWN_CYCLES} cycles",
            "mean bits",
            "BitOPs saved",
            "published group",
        ),
        [
            (
                entry.name,
                entry.short or "",
                readable.sparkline(entry.bits[:visible], LINE_WIDTH),
                f"{entry.mean_bits:.2f}",
                _saving(entry),
                entry.group or "",
            )
            for entry in shown
        ],
        title=title,
        optional=("published group", "short", "mean bits"),
    )


def _saving(entry: "ShownSchedule") -> str:
    if entry.saving is None:
        return ""
    if entry.saving < 0:  # a run that begins in float32
        return "none"
    return f"at most {readable.share(entry.saving)}" if entry.follows_loss else readable.share(entry.saving)


def _long_name(name: str) -> str:
    from cpt_deploy.precision import published_name
    from cpt_deploy.precision import schedules as known

    for candidate in known:
        published = published_name(candidate)
        if published is not None and published[0] == name.upper():
            return candidate
    return name


def _draw(shown: "list[ShownSchedule]", plot: Path, title: str) -> None:
    from cpt_deploy.report import check_plot_path, plot_schedules

    check_plot_path(plot)
    saved = {e.name: f": {_saving(e)} saved" if e.saving is not None else "" for e in shown}
    with out.writing(plot):
        named = {(entry.short or entry.name) + saved[entry.name]: entry.bits for entry in shown}
        plot_schedules(named, plot, title=title)


COMMAND = Command(
    schedules,
    "cpt schedules",
    "cpt schedules CR RR ETH --bits 4-8 --cycles 32 --grad-bits 6-8 --plot schedules.svg  # scheduled gradients",
    "cpt schedules progressive --losses runs/resnet20/metrics.csv  # the bits under that loss",
    "cpt schedules --recipe my-recipe.yaml --plot bits.png  # forward, groups of layers, gradients",
    "cpt schedules my_package.schedules:warm_up  # your own, by import path",
)
