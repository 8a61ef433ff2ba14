"""`cpt schedules`: how bits move over a run, and what that costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import LOOK_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_cli.recipes import parse_bounds
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.precision import PrecisionSchedule

LINE_WIDTH = 32
SHOWN_CYCLES = 8
"""More cycles than this cannot be seen in a line of `LINE_WIDTH`."""


def schedules(  # noqa: PLR0913, PLR0917  the options are its parameters
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, short names such as RTH, or your own as package.module:schedule.",
            show_default="all that are known",
        ),
    ] = None,
    bits: Annotated[str, typer.Option(help="Bounds of the cycle: LOWER-UPPER.")] = "3-8",
    cycles: Annotated[int, typer.Option(min=1, help="Cycles in the run.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 6400,
    grad_bits: Annotated[int, typer.Option(min=2, max=32, help="Bits of the gradients, for the cost.")] = 8,
    plot: Annotated[Path | None, typer.Option(help="Draw them into this PNG or SVG file.")] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Show precision schedules: their bits over a run, their mean, and the BitOPs they save against static bits.

    The ten of Wolfe & Kyrillidis (2024) have their short names and the groups of saving that are compared there;
    `cosine` is the schedule of the CPT paper. A recipe takes one as precision.schedule.
    """
    from cpt_deploy.precision import schedules as known

    lower, upper = parse_bounds(bits)
    chosen = names or [name for name in known if name not in ("static", "piecewise")]
    entries = [_describe(name, lower, upper, cycles, steps, grad_bits) for name in chosen]
    out.table(
        (
            "schedule",
            "short",
            "bits over the run" if cycles <= SHOWN_CYCLES else f"bits, first {SHOWN_CYCLES} cycles",
            "mean bits",
            "BitOPs saved",
            "published group",
        ),
        [
            (
                entry["name"],
                entry["short"] or "",
                formats.sparkline(entry["bits"][: -(-steps * min(cycles, SHOWN_CYCLES) // cycles)], LINE_WIDTH),
                f"{entry['mean_bits']:.2f}",
                formats.share(entry["saving"]),
                entry["group"] or "",
            )
            for entry in entries
        ],
        title=f"{lower}-{upper} bits, {cycles} cycles, gradients at {grad_bits} bits",
    )
    if plot is not None:
        _draw(entries, plot)
    out.result({"schedules": [{key: value for key, value in entry.items() if key != "bits"} for entry in entries]})


def _describe(name: str, lower: int, upper: int, cycles: int, steps: int, grad_bits: int) -> dict[str, Any]:
    from cpt_deploy.precision import StaticSchedule, build_schedule, published_name, relative_cost, share_of_steps

    points = [(0.0, lower), (0.5, upper)] if name == "piecewise" else None
    schedule: PrecisionSchedule = build_schedule(name, lower=lower, upper=upper, cycles=cycles, points=points)
    backward = StaticSchedule(grad_bits)
    shares = share_of_steps(schedule, steps)
    long_name = _long_name(name)
    published = published_name(long_name)
    return {
        "name": long_name,
        "short": published[0] if published else None,
        "group": f"{published[1]} saving" if published else None,
        "mean_bits": sum(width * share for width, share in shares.items()),
        "saving": 1 - relative_cost(schedule, backward, steps, reference_bits=upper),
        "shares": {str(width): share for width, share in shares.items()},
        "bits": [schedule.bits_at(step, steps) for step in range(steps)],
    }


def _long_name(name: str) -> str:
    from cpt_deploy.precision import published_name
    from cpt_deploy.precision import schedules as known

    for candidate in known:
        published = published_name(candidate)
        if published is not None and published[0] == name.upper():
            return candidate
    return name


def _draw(entries: list[dict[str, Any]], plot: Path) -> None:
    from cpt_deploy.report import DrawnSchedule, check_plot_path, plot_schedules

    check_plot_path(plot)
    drawn = [
        DrawnSchedule(f"{entry['short'] or entry['name']}: {formats.share(entry['saving'], 1)} saved", entry["bits"])
        for entry in entries
    ]
    try:
        plot_schedules(drawn, plot)
    except OSError as error:
        raise UsageError(f"Expected to write {formats.path(plot)}, but got: {error.strerror or error}") from error
    out.note(f"wrote {formats.path(plot)}")


COMMAND = Command(
    name="schedules",
    function=schedules,
    panel=LOOK_PANEL,
    examples=(
        "cpt schedules",
        "cpt schedules CR RR ETH --bits 4-8 --cycles 32 --plot schedules.svg",
        "cpt schedules my_package.schedules:warm_up  # your own, by import path",
    ),
)
