"""`cpt sweep`: export one run at several bits, validate each bundle, and time them."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

SAME = "same"


def sweep(
    run: Annotated[Path, typer.Argument(help="Directory that cpt train wrote.")],
    bits: Annotated[
        str | None,
        typer.Option(
            help="Bits of the weights, separated by commas.", show_default="those of 8,6,5,4,3 that the run trained at"
        ),
    ] = None,
    act_bits: Annotated[
        str | None,
        typer.Option(
            help=f"Bits of activations with scheduled precision in training, each combined with each of --bits; "
            f"'{SAME}' means the bits of the weights.",
            show_default="the run's max_bits",
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Measure this many test images, or tokens of the test text.", show_default="all"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of timed calls per model.")] = 50,
    force: Annotated[bool, typer.Option("--force", help="Also export at bits that the run never trained at.")] = False,
    native: Annotated[
        bool, typer.Option("--native", help="Keep the full range of 8-bit weights, as cpt export --native does.")
    ] = False,
) -> None:
    """Export a run at several bits, validate each bundle on the whole test set, and time them all in onnxruntime.

    Writes RUN/sweep: one bundle per export, sweep.json, sweep.md and sweep.png. Bundles and validations of an earlier
    sweep of the same weights are kept; only the times are measured again.
    """
    from cpt_deploy.workflows import run_at, sweep_run

    swept = sweep_run(
        run_at(run),
        bits=None if bits is None else [_number(word, "--bits") for word in bits.split(",")],
        activation_bits=None
        if act_bits is None
        else [None if word.strip() == SAME else _number(word, "--act-bits") for word in act_bits.split(",")],
        rounds=rounds,
        force=force,
        native=native,
        data_dir=data_dir,
        limit=limit,
        reporter=out,
    )
    out.table(
        swept.table.columns,
        swept.table.rows,
        title=swept.table.title,
        optional=("activations", "95 % interval", "weights at their bits", "latency"),
    )
    exports = swept.content["exports"]
    for entry in exports:
        if entry["mismatching_integers"]:
            out.warning(f"{entry['bundle']}: {entry['mismatching_integers']} integers differ; cpt validate shows where")
    out.note(f"written: {readable.path(swept.folder)}/sweep.json, sweep.md, sweep.png")
    out.result({"folder": swept.folder, **swept.content})
    out.hint(f"cpt serve {readable.argument(swept.folder / exports[-1]['bundle'])}")


def _number(word: str, option: str) -> int:
    try:
        bits = int(word)
    except ValueError:
        bits = 0
    if not 2 <= bits <= 8:
        example = "--bits 8,6,4" if option == "--bits" else f"--act-bits 8,{SAME}"
        raise UsageError(
            f"Expected {option} to be numbers from 2 to 8, but got {word!r}", hint=f"for example {example}"
        )
    return bits


COMMAND = Command(
    sweep,
    "cpt sweep runs/digits",
    "cpt sweep runs/digits --bits 8,6,5 --act-bits 8,same  # activations at 8 bits, and at the bits of the weights",
)
