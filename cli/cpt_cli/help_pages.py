"""The group that imports only the command that is called, and help pages as plain text.

Typer's own help pages import Rich with its Markdown parser, which takes longer than everything else in `cpt --help`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cpt_cli.command import examples, paragraphs, with_output_options
from cpt_cli.commands import COMMANDS, Listed

MAX_WIDTH = 120
"""Columns of a help page on a wide terminal."""


class _Page:
    """How help pages differ from Typer's plain ones: a section per panel, and an epilog that is not wrapped."""

    epilog: str | None
    get_params: Callable[[Any], list[Any]]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each under the heading of its panel."""
        rows = []
        for parameter in self.get_params(ctx):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows.append((getattr(parameter, "rich_help_panel", None) or default, record))
        _write_sections(formatter, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, so that each can be copied as one line."""
        if self.epilog:
            formatter.write_paragraph()
            lines = self.epilog.splitlines(keepends=True)
            formatter.write("".join(line if line.startswith(" ") else _bold(line) for line in lines))


class CommandPage(_Page, TyperCommand):
    """A command with its help page."""


class CommandGroup(_Page, TyperGroup):
    """The group `cpt`: it lists its commands from a table and imports the module of the one that is called."""

    def __init__(self, **settings: Any) -> None:
        listed = {entry.name: TyperCommand(entry.name, help=entry.summary) for entry in COMMANDS}
        super().__init__(**{**settings, "commands": listed})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; `None` if there is no such command."""
        return next((_load(entry) for entry in COMMANDS if entry.name == cmd_name), None)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and the commands under the headings of their panels."""
        super().format_options(ctx, formatter)
        _write_sections(formatter, [(entry.panel, (entry.name, entry.summary)) for entry in COMMANDS])


def _load(entry: Listed) -> Any:
    command = entry.load()
    page = typer.Typer(rich_markup_mode=None, add_completion=False)
    page.command(
        command.name,
        cls=CommandPage,
        help=paragraphs(command.function.__doc__ or ""),
        epilog=examples(command.examples),
    )(with_output_options(command.function))
    return typer.main.get_command(page)


def _write_sections(formatter: Any, rows: Iterable[tuple[str, tuple[str, str]]]) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for panel, row in rows:
        sections.setdefault(panel, []).append(row)
    for panel, entries in sections.items():
        with formatter.section(_bold(panel)):
            formatter.write_dl(entries)


def _bold(heading: str) -> str:
    return typer.style(heading, bold=True)
