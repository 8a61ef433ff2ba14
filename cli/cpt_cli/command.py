"""The definition of a command: function, panel of the help, examples, and the options that all commands share."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from cpt_deploy.errors import UsageError

OUTPUT_PANEL = "Output"


class Command:
    """One verb of `cpt`.

    Args:
        function: Function that Typer calls, named after the verb; its docstring and annotations are the help.
        examples: Complete command lines; a comment may follow after "  # ".
    """

    def __init__(self, function: Callable[..., None], *examples: str) -> None:
        self.name = function.__name__.replace("_", "-")
        self.function, self.examples = function, examples


PROVIDER_HELP = (
    "Execution provider of onnxruntime: cpu, cuda, tensorrt, another by its full name, or NAME=PATH from a library."
)
ProviderOption = Annotated[str, typer.Option(help=PROVIDER_HELP)]
#: Options of all commands, by the name of their parameter; `main` reads them before a line is parsed.
_OUTPUT_OPTIONS: dict[str, Any] = {
    name: Annotated[bool, typer.Option(*words, help=text, rich_help_panel=OUTPUT_PANEL)]
    for name, words, text in (
        ("json_output", ("--json",), "Print one JSON object on stdout."),
        ("quiet", ("--quiet", "-q"), "Print results only: no progress, summaries or hints."),
        ("debug", ("--debug",), "Show the traceback of an error, as CPT_DEBUG=1 does."),
    )
}


def with_output_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command's function with the options that all commands share, for Typer, which reads its signature."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        function(**{name: value for name, value in options.items() if name not in _OUTPUT_OPTIONS})

    signature = inspect.signature(function)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in _OUTPUT_OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, **_OUTPUT_OPTIONS}
    return run


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
    return "\n".join(["Examples:", *(f"  $ {command}" for command in commands)]) + "\n"
