"""The definition of a command: function, panel of the help, examples, and the options that all commands share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from cpt_cli.output import out
from cpt_deploy.errors import UsageError

TRAIN_PANEL = "Train and export"
SHIP_PANEL = "Check and serve"
LOOK_PANEL = "Look around"
OUTPUT_PANEL = "Output"


@dataclass(frozen=True, slots=True)
class Command:
    """One verb of `cpt`.

    Attributes:
        name: The verb.
        function: Function that Typer calls; its docstring and annotations are the help.
        panel: The heading under which `cpt --help` lists it.
        examples: Complete command lines; a comment may follow after "  # ".
    """

    name: str
    function: Callable[..., None]
    panel: str
    examples: tuple[str, ...]


def _set_json(value: bool) -> bool:
    out.json_mode = out.json_mode or value
    return value


def _set_quiet(value: bool) -> bool:
    out.quiet = out.quiet or value
    return value


def _set_debug(value: bool) -> bool:
    out.debug = out.debug or value
    return value


PROVIDER_HELP = (
    "Execution provider of onnxruntime: cpu, cuda, tensorrt, another by its full name, or NAME=PATH from a library."
)
ProviderOption = Annotated[str, typer.Option(help=PROVIDER_HELP)]
JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout.",
        rich_help_panel=OUTPUT_PANEL,
        callback=_set_json,
        is_eager=True,
    ),
]
QuietFlag = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print results only: no progress, summaries or hints.",
        rich_help_panel=OUTPUT_PANEL,
        callback=_set_quiet,
        is_eager=True,
    ),
]
DebugFlag = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error, as CPT_DEBUG=1 does.",
        rich_help_panel=OUTPUT_PANEL,
        callback=_set_debug,
        is_eager=True,
    ),
]


def number_list(option: str, text: str) -> list[int]:
    """Parse an option of several numbers; duplicates are removed.

    Args:
        option: Name of the option, for errors.
        text: Numbers above 0, separated by commas.

    Raises:
        UsageError: If the text has another form.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) <= 65536 for word in words):
        raise UsageError(f"Expected {option} to be numbers above 0, such as 1,8,32, but got {text!r}")
    return list(dict.fromkeys(int(word) for word in words))


def paragraphs(docstring: str) -> str:
    """Return a docstring with each paragraph on one line, so that lines are wrapped to the terminal's width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))


def examples(commands: Sequence[str]) -> str:
    """Return the epilog of a command's help: its examples, one per line.

    Args:
        commands: Complete command lines; a comment may follow after "  # ".
    """
    lines = ["[bold]Examples[/bold]"]
    for command in commands:
        line, separator, comment = command.partition("  # ")
        shown = line.replace("[", "\\[")
        lines.append(f"[green]$ {shown}[/green]" + (f"  [dim]# {comment}[/dim]" if separator else ""))
    return "\n\n".join(lines)
